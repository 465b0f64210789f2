"""Models with the shapes of releases and random weights, as GGUF files: for questions about speed, which does not depend on what
weights say. Fewer layers and a vocabulary cut in proportion, so that the share of every kind of matrix stays what it is; or a
release's whole shape, by its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints import gguf_keys, names
from herd.checkpoints.gguf_llama4 import NAMES as LLAMA4
from herd.convert.conversion import FILE_TYPES
from herd.convert.gguf_file import write_gguf
from herd.convert.streams import Output
from herd.convert.writing import Told
from herd.dtypes import BY_NAME, F32, DType
from herd.family.catalogue import find
from herd.family.progress import silent
from herd.files.writing import atomic_write
from herd.models.architecture import Config, architecture_of
from herd.models.llama import LlamaConfig
from herd.models.llama4 import Llama4Config, every
from herd.models.rope import Rope
from herd.models.weights import Kind
from herd.quant import quantize
from herd.text.byte_level import ALPHABET

_POOL_COLUMNS = 256
_COMMON = {"context_length": 8192, "norm_eps": 1e-5}


def _llama(layers: int, width: int, ffn_width: int, heads: tuple[int, int, int], vocabulary: int) -> LlamaConfig:
    num_heads, num_kv_heads, head_width = heads
    return LlamaConfig(
        **_COMMON,
        width=width,
        num_layers=layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_width=head_width,
        ffn_width=ffn_width,
        vocab_size=vocabulary,
        rope=Rope(500000.0, head_width),
        tied_embeddings=True,
    )


def _llama4(layers: int, interval: int, experts: int, expert_width: int) -> Llama4Config:
    width, heads, kv_heads, head_width = 2560, 20, 4, 128
    rotary = tuple(layer for layer in range(layers) if layer not in every(4, layers))
    return Llama4Config(
        **_COMMON,
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_width=head_width,
        ffn_width=2 * expert_width,
        expert_width=expert_width,
        num_experts=experts,
        expert_layers=every(interval, layers),
        rotary_layers=rotary,
        chunked_layers=rotary,
        chunk=8192,
        vocab_size=8192,
        rope=Rope(500000.0, head_width),
        qk_norm=experts != 128,
        temper_scale=0.1,
    )


SHAPES: dict[str, tuple[Config, str]] = {
    "tiny": (_llama(2, 256, 512, (4, 2, 64), 512), "two layers of 256, for a trial"),
    "1b": (_llama(4, 2048, 8192, (32, 8, 64), 32064), "a quarter of Llama 3.2 1B: 4 of 16 layers, a quarter of the vocabulary"),
    "8b": (_llama(2, 4096, 14336, (32, 8, 128), 8016), "a sixteenth of Llama 3.1 8B: 2 of 32 layers, a sixteenth of the vocabulary"),
    "scout": (_llama4(2, 1, 16, 4096), "Llama 4 Scout at half its width: 2 layers, 16 experts of 4096 and a shared one"),
    "maverick": (_llama4(2, 2, 128, 2048), "Llama 4 Maverick at half its width: 2 layers, 128 experts of 2048 and a shared one in one"),
}


@dataclass(slots=True)
class Random:
    """A tensor of random values that are never all in memory: rows are put together of a few quantised stretches."""

    dtype: DType
    shape: tuple[int, ...]
    spread: float
    tensors: tuple[()] = ()
    _pool: NDArray[np.uint8] | None = field(default=None)

    def read(self, first: int, last: int) -> NDArray[np.uint8]:
        chance = np.random.default_rng([first, *self.shape])
        columns = math.gcd(_POOL_COLUMNS, self.shape[-1])
        if self._pool is None:
            values = np.random.default_rng(1).standard_normal((256, columns)).astype(np.float32)
            self._pool = quantize(self.dtype, values * np.float32(self.spread))
        chosen = chance.integers(0, len(self._pool), (last - first, self.shape[-1] // columns))
        return self._pool[chosen].reshape(last - first, -1)

    def rows(self) -> NDArray[np.uint8]:
        return self.read(0, math.prod(self.shape[:-1]))


def shape_of(name: str) -> tuple[Config, str]:
    """A shape of `SHAPES`, or the whole one of a release, with rotary positions that a file needs no further tensor for; and what it is."""
    if name in SHAPES:
        return SHAPES[name]
    cfg = find(name).config()
    assert isinstance(cfg, LlamaConfig)
    return replace(cfg, rope=Rope(cfg.rope.theta, cfg.rope.width)), f"the shape of {name}"


def vocabulary(size: int) -> dict[str, Any]:
    """A byte-level vocabulary of so many tokens, as a file has it, for questions about what one takes: single bytes, then pairs of what
    is there, so that every merge makes a new token; and an end."""
    tokens, merges = list(ALPHABET), []
    for number in range(size - len(tokens) - 1):
        left, right = tokens[number // len(ALPHABET)], ALPHABET[number % len(ALPHABET)]
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    kinds = [1] * len(tokens) + [3]
    keys = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": [*tokens, "<|end|>"],
        "token_type": kinds,
        "merges": merges,
        "eos_token_id": size - 1,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def write_model(path: Path, shape: str, quant: str, *, words: bool = False) -> Config:
    """A GGUF file of this shape, all matrices in the format `quant`; with `words`, a vocabulary too."""
    cfg, _ = shape_of(shape)
    table = names.GGUF if isinstance(cfg, LlamaConfig) else LLAMA4
    outputs = []
    for spec in architecture_of(cfg).tensors(cfg):
        is_plain = spec.kind.is_vector or spec.kind is Kind.ROUTER
        source = Random(F32 if is_plain else BY_NAME[quant], spec.shape, 1.0 if spec.kind.is_vector else 0.02)
        outputs.append(Output(names.in_file(table, spec.name), source))
    keys = {
        "general.architecture": "llama" if isinstance(cfg, LlamaConfig) else "llama4",
        "general.type": "model",
        "general.name": f"random {shape} {quant}",
        "general.quantization_version": 2,
        "general.file_type": FILE_TYPES[quant],
        **gguf_keys.keys_of(cfg),
        gguf_keys.CONFIG: gguf_keys.kept(cfg),
        **(vocabulary(cfg.vocab_size) if words else {"tokenizer.ggml.model": "no_vocab"}),
    }
    with atomic_write(path) as file:
        write_gguf(file, keys, outputs, Told(silent, path.name, 0))
    return cfg
