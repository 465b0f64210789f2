"""What `herd bench` measures: a model that is here, or a release's shape written for the occasion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.cli.options import LOADING, given
from herd.errors import CapacityError, UsageError

if TYPE_CHECKING:
    from herd.bench.bounds import Bounds
    from herd.bench.engines import Settings
    from herd.bench.tasks import Wanted


FEW_TASKS = "decode,prompt,start,memory"


@dataclass(frozen=True, slots=True)
class Target:
    """A file and what is known of it. `vocabulary`: ids that prompts are made of; `facts` go into every figure."""

    title: str
    path: Path
    bounds: Bounds
    vocabulary: tuple[int, int]
    max_context: int
    facts: dict[str, Any]
    is_gguf: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.bounds.kinds

    def wanted(self, options: dict[str, Any], *, is_shape: bool) -> Wanted:
        return wanted_of(options, "all" if is_shape else FEW_TASKS, self.vocabulary, self.max_context)

    def engines(self, options: dict[str, Any], wanted: Wanted) -> dict[str, Settings]:
        """herd, and the peers that can open such a file."""
        from herd.bench.engines import Settings
        from herd.bench.report import machine

        threads = options["threads"] or int(machine()["cores"])
        ours = given(options, LOADING) | ({"context": wanted.context} if options["context"] is None else {})
        found = {"herd": Settings(str(self.path), threads, wanted.context, wanted.sequences, ours)}
        if self.is_gguf and options["backend"] == "cpu":
            found |= {name: Settings(str(self.path), threads, wanted.context, wanted.sequences) for name in peers_named(options["peers"])}
        elif options["peers"] not in (None, "none"):
            raise UsageError("Other engines are compared with on GGUF files and the cpu backend; leave --peers out.")
        return found


@contextmanager
def model_target(name: str, options: dict[str, Any]) -> Iterator[Target]:
    """A model that is here, or is fetched."""
    from herd.bench.shapes import FIRST_TOKEN
    from herd.checkpoints.open import open_checkpoint
    from herd.cli.output import fetching
    from herd.family.finding import find_model

    with fetching() as progress:
        found = find_model(name, progress=progress)
    checkpoint = open_checkpoint(found.path)
    try:
        config = checkpoint.config
        if getattr(config, "labels", None) is not None:
            raise UsageError(f"{found.name} is a classifier of whole texts; it has no next token to time.")
        dtypes = {spec.name: checkpoint.dtype(spec.name) for spec in checkpoint.specs}
        bounds = _bounds(config, lambda spec: dtypes[spec.name], dtypes.values(), options)
        facts: dict[str, Any] = {"model": found.name, "model_mb": round(checkpoint.num_bytes / 1e6, 1), "model_sha256": _sha256(found.path)}
        context = min(config.context_length, options["context"] or config.context_length)
        size = int(config.vocab_size)
        vocabulary = (min(FIRST_TOKEN, size // 2), max(size - 256, size // 2 + 1))
        yield Target(found.name, found.path, bounds, vocabulary, context, facts, checkpoint.layout == "gguf")
    finally:
        checkpoint.close()


@contextmanager
def shape_target(name: str, options: dict[str, Any]) -> Iterator[Target]:
    """A release's shape with random weights, in a file that is gone afterwards."""
    from herd.bench.scratch import scratch_folder
    from herd.bench.shapes import FIRST_TOKEN, shape_of, write_shape
    from herd.cli.output import fetching
    from herd.engine.memory import available_bytes
    from herd.models.sizes import weight_bytes

    shape = shape_of(name, options["quant"], options["layers"])
    size, free = weight_bytes(shape.config, shape.stored.chosen), available_bytes()
    if free is not None and size > free:
        raise CapacityError(
            f"{shape.title} takes {size:,} bytes and {free:,} are available. Measure fewer layers: --layers {max(1, shape.layers // 4)}."
        )
    with scratch_folder() as folder:
        path = folder / "model.gguf"
        with fetching() as progress:
            write_shape(path, shape, progress)
        dtypes = {shape.stored.chosen(spec) for spec in _specs(shape.config)}
        bounds = _bounds(shape.config, shape.stored.chosen, dtypes, options)
        facts = {"model": shape.title, "model_mb": round(size / 1e6, 1), "layers": shape.layers, "all_layers": shape.all_layers}
        facts["model_sha256"] = _sha256(path)
        vocabulary = (FIRST_TOKEN, shape.config.vocab_size - 2)
        yield Target(shape.title, path, bounds, vocabulary, shape.config.context_length, facts, True)


def _specs(config: Any) -> Any:
    from herd.models.architecture import architecture_of

    return architecture_of(config).tensors(config)


def _bounds(config: Any, chosen: Any, dtypes: Any, options: dict[str, Any]) -> Bounds:
    """Of a model that is run with these options; `chosen` gives the format of a weight, `dtypes` are all of them."""
    from herd.bench.bounds import Bounds

    return Bounds(config, chosen, options["activations"] or "int8", _cache(dtypes, options), has_bf16=_has_bf16(options))


def _cache(dtypes: Any, options: dict[str, Any]) -> Any:
    """The number format of keys and values: as asked for (integers have a scale for 32 of them, about), else float16 where block
    formats meet int8 activations, and float32."""
    from herd.dtypes import BY_NAME, F16, F32

    asked = {"float32": "f32", "float16": "f16", "int8": "q8_0", "int4": "q4_0"}.get(options.get("kv_cache") or "auto")
    if asked is not None:
        return BY_NAME[asked]
    is_int8 = (options["activations"] or "int8") == "int8" and any(dtype.is_block for dtype in dtypes)
    return F16 if is_int8 else F32


def _has_bf16(options: dict[str, Any]) -> bool:
    """Of the cpu backend, which alone is set against bounds."""
    if options["backend"] != "cpu":
        return False
    from herd.backends.cpu.limits import multiplies_bf16

    return multiplies_bf16()


def _sha256(path: Path) -> str | None:
    """Of a file; a folder has none."""
    import hashlib

    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peers_named(text: str | None) -> tuple[str, ...]:
    """The engines to compare with. `UsageError` for one that is unknown or not installed."""
    from herd.bench.engines import PEERS, installed_peers

    if text is None:
        return installed_peers()
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--peers has {name!r:.40}; there are {', '.join(PEERS)}, and none.")
        if name not in installed_peers():
            raise UsageError(f"{name} is not installed here. Install it: pip install 'herd-llama[bench]', or leave it out.")
    return tuple(names)


def wanted_of(options: dict[str, Any], default: str, vocabulary: tuple[int, int], max_context: int) -> Wanted:
    """What is measured of a model of this context; tasks that do not fit are left out unless they were asked for by name."""
    from herd.bench.tasks import CONTEXT_DECODED, CONTEXT_TOKENS, Wanted, tasks_named

    names = tasks_named(options["what"] or default)
    fits = options["what"] not in (None, "all") or max_context >= CONTEXT_TOKENS + CONTEXT_DECODED
    names = names if fits else tuple(name for name in names if name not in ("context", "long-prompt"))
    wanted = Wanted(names, options["rounds"], options["prompt_tokens"], options["decode_tokens"], vocabulary, max_context)
    if wanted.context > max_context:
        raise UsageError(
            f"The context has {max_context} tokens and {wanted.context} are needed; choose fewer --prompt-tokens and --decode-tokens."
        )
    return wanted
