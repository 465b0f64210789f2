"""What a text says about a model's matrices: how large the input of each column is, and how much an error in each output matters.

Values are read between the layers, as `Model.trace` does; nothing else is needed of a backend. Memory: the running model and
a number for each column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import Backend, BackendOptions, Watch
from herd.checkpoints.checkpoint import Checkpoint
from herd.engine.engine import Engine
from herd.errors import UsageError
from herd.family.progress import Progress
from herd.models.architecture import num_embeddings
from herd.models.weights import TensorSpec
from herd.quant import dequantize
from herd.text.tokenizer import load_tokenizer

Floats = NDArray[np.float32]

WINDOW = 512
# Root mean square of the errors that are tried, over that of the value.
TRIED = 0.1


@dataclass(frozen=True, slots=True)
class Calibration:
    """inputs    the name of a weight -> mean square of what each of its columns is multiplied with [columns]
    outputs      the name of a value between layers -> mean over tokens of its sum of squares
    harm         the name of a value -> KL divergence (nats a token) that an error as large as the value would cause, if the
                 harm grew with the square of the error all the way; empty where it was not asked for
    """

    inputs: Mapping[str, Floats]
    outputs: Mapping[str, float]
    harm: Mapping[str, float]


def tokens_of(checkpoint: Checkpoint, text: str, limit: int) -> list[list[int]]:
    """The text as windows of token ids, each beginning as the model's texts do. `UsageError` without a tokenizer or text."""
    source = checkpoint.tokenizer
    if source is None:
        raise UsageError("The source has no tokenizer, so no text can be read with it. Quantise it without --importance and --bits.")
    known = num_embeddings(checkpoint.config)
    tokenizer = load_tokenizer(kind=source.kind, path=source.path, metadata=source.metadata, config=source.config, model_vocab=known)
    prefix, ids = tokenizer.encode("", bos=None), tokenizer.encode(text, bos=False)[:limit]
    if len(ids) < 2:
        raise UsageError(f"The text of --importance has {len(ids)} tokens; a few thousand are needed, such as those of a long article.")
    size = min(WINDOW, checkpoint.config.context_length) - len(prefix)
    return [[*prefix, *ids[at : at + size]] for at in range(0, len(ids), size)]


@contextmanager
def running(checkpoint: Checkpoint) -> Iterator[Engine]:
    """The checkpoint as a model that computes with what is stored, activations in float32."""
    options = BackendOptions(activations="float32")
    backend = _backend(checkpoint, options)
    try:
        yield Engine(backend, context_length=min(WINDOW, checkpoint.config.context_length))
    finally:
        backend.close()


def _backend(checkpoint: Checkpoint, options: BackendOptions) -> Backend:
    """The compiled one, or the definition where there is none."""
    try:
        from herd.backends.cpu import CpuBackend
    except ImportError:
        from herd.backends.reference import ReferenceBackend

        return ReferenceBackend(checkpoint.config, checkpoint.leaf, options)
    return CpuBackend(checkpoint.config, checkpoint.leaf, options, checkpoint.release_pages)


def calibrate(checkpoint: Checkpoint, engine: Engine, windows: Sequence[Sequence[int]], progress: Progress) -> Calibration:
    """Runs the windows once; `harm` is left empty."""
    names = set(engine.backend.value_names())
    norms = _norms(checkpoint)
    wanted = frozenset(name for name in names if not name.endswith(".weights"))
    columns: dict[str, NDArray[np.float64]] = {}
    squares: dict[str, float] = {}
    total, done = sum(map(len, windows)), 0
    for tokens in windows:
        for positions, result in engine.examine(tokens, lambda _: Watch(wanted)):
            for name, value in result.values.items():
                rows = np.asarray(value, np.float32).reshape(len(positions), -1)
                squares[name] = squares.get(name, 0.0) + float(np.square(rows, dtype=np.float64).sum())
                if name == "logits":
                    continue
                for key, each in ((name, rows), *((norm.key, norm(rows)) for norm in norms.get(name, ()))):
                    columns[key] = columns.get(key, 0.0) + np.square(each, dtype=np.float64).sum(axis=0)
            done += len(positions)
            progress("reading the text, tokens", done, total)
    inputs: dict[str, Floats] = {}
    for spec in checkpoint.specs:
        source = input_of(spec)
        if source in columns and len(columns[source]) == spec.shape[-1]:
            inputs[spec.name] = (columns[source] / total).astype(np.float32)
    if checkpoint.config.tied_embeddings:
        inputs["embed"] = (columns["final"] / total).astype(np.float32)
    outputs = {name: value / total for name, value in squares.items()}
    return Calibration(inputs, outputs, {})


@dataclass(frozen=True, slots=True)
class _Norm:
    """An RMS norm: what a matrix after it reads."""

    key: str
    weight: Floats
    eps: float

    def __call__(self, rows: Floats) -> Floats:
        mean = np.mean(np.square(rows), axis=1, keepdims=True)
        normed: Floats = rows / np.sqrt(mean + np.float32(self.eps)) * self.weight
        return normed


def _norms(checkpoint: Checkpoint) -> dict[str, list[_Norm]]:
    """Value between layers -> the norms that read it."""
    found: dict[str, list[_Norm]] = {}
    for layer in range(checkpoint.config.num_layers):
        before = f"layers.{layer - 1}.out" if layer else "embed"
        for value, name in ((before, f"layers.{layer}.attention_norm"), (f"layers.{layer}.middle", f"layers.{layer}.ffn_norm")):
            leaf = checkpoint.leaf(name)
            weight = dequantize(leaf.dtype, leaf.data, leaf.shape)
            found.setdefault(value, []).append(_Norm(name, weight, checkpoint.config.norm_eps))
    return found


def input_of(spec: TensorSpec) -> str | None:
    """What a matrix reads: a norm, or a value between layers. None: not known (the hidden state inside each expert)."""
    at, _, name = spec.name.rpartition(".")
    layer = ".".join(at.split(".")[:2])
    match name:
        case "q" | "k" | "v":
            return f"{layer}.attention_norm"
        case "out":
            return f"{at}.heads"
        case "gate" | "up":
            return f"{layer}.ffn_norm"
        case "down":
            return f"{at}.hidden"
        case "head":
            return "final"
    return None


def output_of(spec: TensorSpec, names: Mapping[str, object]) -> tuple[str, bool]:
    """The value in which an error of this matrix shows first, and whether that is the matrix's own output."""
    at, _, name = spec.name.rpartition(".")
    direct = {"q": f"{at}.q", "k": f"{at}.k", "v": f"{at}.v", "out": f"{at}.out", "down": f"{at}.out", "head": "logits", "embed": "embed"}
    if name in direct and direct[name] in names:
        return direct[name], True
    return (f"{at}.hidden" if f"{at}.hidden" in names else f"{at}.out"), False


def try_errors(
    checkpoint: Checkpoint, engine: Engine, tokens: Sequence[int], known: Mapping[str, float], progress: Progress
) -> Iterator[dict[str, float]]:
    """For each value that a matrix gives: the divergence that noise in it causes, over the noise's relative square. Begins with what is
    `known` and gives all so far after each; the last is the whole."""
    names = dict.fromkeys(engine.backend.value_names())
    tried = sorted({output_of(spec, names)[0] for spec in checkpoint.specs if len(spec.shape) > 1} & set(names))
    right = _log_probabilities(engine, tokens, {})
    found = dict(known)
    for done, name in enumerate(tried, 1):
        if name in found:
            continue
        seed = np.random.default_rng(done)

        def disturbed(value: Floats, random: np.random.Generator = seed) -> Floats:
            rows = value.reshape(len(value), -1)
            noise = random.standard_normal(rows.shape, np.float32)
            size = np.sqrt(np.mean(np.square(rows), axis=1, keepdims=True)) * np.float32(TRIED)
            noisy: Floats = rows + noise * size
            return noisy.reshape(value.shape)

        wrong = _log_probabilities(engine, tokens, {name: disturbed})
        divergence = np.sum(np.exp(right) * (right - wrong), axis=1).mean()
        found[name] = max(float(divergence), 1e-12) / TRIED**2
        progress("trying errors, values", done, len(tried))
        yield found


def _log_probabilities(engine: Engine, tokens: Sequence[int], patch: Mapping[str, Callable[[Floats], Floats]]) -> NDArray[np.float64]:
    """[tokens, vocabulary] with values replaced."""
    pieces = []
    for _, result in engine.examine(list(tokens), lambda _: Watch(frozenset(), patch)):
        assert result.logits_RV is not None
        rows = result.logits_RV.astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        pieces.append(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))
    return np.concatenate(pieces)
