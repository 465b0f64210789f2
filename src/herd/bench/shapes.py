"""The shape of any release with random weights, as a GGUF file: how fast a model runs does not depend on what its weights say.

Written row by row, so that no second copy of the weights is ever in memory. The vocabulary is made up, of the size that the model
has, so that engines which insist on one open the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints import gguf_keys, names
from herd.checkpoints.gguf_llama4 import NAMES as LLAMA4
from herd.checkpoints.stored import of_values
from herd.convert.conversion import FILE_TYPES
from herd.convert.gguf_file import write_gguf
from herd.convert.streams import Output
from herd.convert.writing import Told, check_place, total_bytes
from herd.dtypes import BY_NAME, F32, Q6_K, DType
from herd.errors import UsageError, did_you_mean
from herd.family.catalogue import releases
from herd.family.progress import Progress
from herd.files import atomic_write
from herd.models.architecture import Config, architecture_of
from herd.models.llama import LlamaConfig
from herd.models.llama4 import Llama4Config
from herd.models.weights import Kind, TensorSpec
from herd.planner.formats import Format, format_named
from herd.quant import quantize

POOL_BLOCKS = 1 << 15
SPREAD = 0.02
"""Standard deviation of random matrices: activations stay of the size that real ones have."""
FIRST_TOKEN = 257
"""Ids below can be spelled; prompts are made of ids from here on."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is to be written: `stored` says in which format each weight; `layers` of the release's `all_layers`."""

    name: str
    config: LlamaConfig | Llama4Config
    stored: Format
    all_layers: int

    @property
    def layers(self) -> int:
        return self.config.num_layers

    @property
    def title(self) -> str:
        cut = "" if self.layers == self.all_layers else f", {self.layers} of {self.all_layers} layers"
        return f"{self.name}{cut}, {self.stored.name}, random weights"


def shape_of(name: str, quant: str, layers: int | None = None) -> Shape:
    """The shape of a release in this number format, of its first `layers`. `UsageError` for an unknown release, for one that GGUF
    does not hold, and for a format that its rows do not divide."""
    known = {each: release for each, release in releases().items() if release.shape is not None}
    release = known.get(name.lower())
    if release is None:
        raise UsageError(f"--shape is {name!r:.60}{did_you_mean(name.lower(), tuple(known))} `herd models` lists the releases.")
    config = release.config()
    if not isinstance(config, LlamaConfig | Llama4Config):
        raise UsageError(f"The shape of {release.name} cannot be measured with random weights: no GGUF file holds such a model.")
    if layers is not None and not 1 <= layers <= config.num_layers:
        raise UsageError(f"--layers is {layers}; {release.name} has {config.num_layers}.")
    stored = format_named(quant, release, config)
    return Shape(release.name, _cut(config, layers or config.num_layers), _with_head(stored, config), config.num_layers)


def _cut(config: LlamaConfig | Llama4Config, layers: int) -> LlamaConfig | Llama4Config:
    """The first layers only, and no eyes."""
    if isinstance(config, LlamaConfig):
        return replace(config, num_layers=layers)
    return replace(
        config,
        num_layers=layers,
        vision=None,
        expert_layers=tuple(each for each in config.expert_layers if each < layers),
        rotary_layers=tuple(each for each in config.rotary_layers if each < layers),
        chunked_layers=tuple(each for each in config.chunked_layers if each < layers),
    )


def _with_head(stored: Format, config: Config) -> Format:
    """The head (or a table that is the head too) in six bits at least, as quantisers leave it."""
    is_tied = not any(spec.kind is Kind.HEAD for spec in architecture_of(config).tensors(config))

    def chosen(spec: TensorSpec) -> DType:
        dtype = stored.chosen(spec)
        is_head = spec.kind is Kind.HEAD or (is_tied and spec.kind is Kind.EMBEDDING)
        wider = Q6_K if spec.shape[-1] % Q6_K.block == 0 else BY_NAME["q8_0"]
        if spec.kind.is_vector or spec.kind is Kind.ROUTER:
            return F32
        return wider if is_head and dtype.is_block and dtype.bits_per_weight < wider.bits_per_weight else dtype

    return replace(stored, chosen=chosen)


@dataclass(slots=True)
class RandomWeights:
    """A tensor of random values that is never whole in memory: one pool of blocks again and again, each piece from another place."""

    dtype: DType
    shape: tuple[int, ...]
    pools: dict[DType, NDArray[np.uint8]] = field(repr=False)
    tensors: tuple[()] = ()

    def read(self, first: int, last: int) -> NDArray[np.uint8]:
        if self.dtype not in self.pools:
            self.pools[self.dtype] = _pool(self.dtype)
        pool = self.pools[self.dtype]
        count = (last - first) * self.dtype.row_bytes(self.shape[-1])
        start = (first * 7919 + self.shape[-1]) % POOL_BLOCKS * self.dtype.block_bytes
        return np.resize(np.roll(pool, -start), count).reshape(last - first, -1)

    def rows(self) -> NDArray[np.uint8]:
        return self.read(0, math.prod(self.shape[:-1]))


def _pool(dtype: DType) -> NDArray[np.uint8]:
    values = np.random.default_rng(0).standard_normal((64, POOL_BLOCKS // 64 * dtype.block)).astype(np.float32)
    return quantize(dtype, values * np.float32(SPREAD)).reshape(-1)


def write_shape(path: Path, shape: Shape, progress: Progress, vocabulary: Mapping[str, Any] | None = None) -> None:
    """The GGUF file. `CapacityError` if the disk has no room for it. `vocabulary`: the file's tokenizer.ggml.* keys; None: of tokens
    that nobody says."""
    cfg = shape.config
    pools: dict[DType, NDArray[np.uint8]] = {}
    table = names.GGUF if isinstance(cfg, LlamaConfig) else LLAMA4
    outputs = [Output(names.in_file(table, spec.name), _source(spec, shape.stored, pools)) for spec in architecture_of(cfg).tensors(cfg)]
    if (divisors := gguf_keys.divisors_of(cfg.rope)) is not None:
        outputs.append(Output("rope_freqs.weight", of_values(np.asarray(divisors, np.float32))))
    most = max(outputs, key=lambda output: output.num_bytes).source.dtype
    keys = {
        "general.architecture": "llama" if isinstance(cfg, LlamaConfig) else "llama4",
        "general.type": "model",
        "general.name": shape.title,
        "general.quantization_version": 2,
        "general.file_type": FILE_TYPES[most.name],
        **gguf_keys.keys_of(cfg),
        gguf_keys.CONFIG: gguf_keys.kept(cfg),
        **(vocabulary or _vocabulary(cfg.vocab_size)),
    }
    check_place(path, total_bytes(outputs))
    with atomic_write(path) as file:
        write_gguf(file, keys, outputs, Told(progress, shape.title, total_bytes(outputs)))


def _source(spec: TensorSpec, stored: Format, pools: dict[DType, NDArray[np.uint8]]) -> Any:
    if spec.kind.is_vector:
        near = 1.0 if spec.kind is Kind.NORM else 0.0
        return of_values(near + SPREAD * np.random.default_rng(0).standard_normal(spec.shape, np.float32))
    return RandomWeights(stored.chosen(spec), spec.shape, pools)


def _vocabulary(size: int) -> dict[str, Any]:
    """Tokens that nobody says: the bytes as byte-level BPE spells them, and names that no text contains."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [chr(0x100 + n) for n in range(256 - len(plain))]
    letters = [chr(code) for code in plain] + others
    pair = letters[0] + letters[1]  # engines want one merge at least, and what it makes
    tokens = [*letters, pair, *(f"<|random-{number}|>" for number in range(size - len(letters)))][:size]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (size - 2) + [3, 3],  # OpenVINO GenAI wants a control token
        "tokenizer.ggml.merges": [f"{letters[0]} {letters[1]}"],
        "tokenizer.ggml.bos_token_id": size - 2,
        "tokenizer.ggml.eos_token_id": size - 1,
    }
