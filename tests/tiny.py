"""Tiny models: every architectural feature of a real llama at sizes that a test can afford. Random weights, fixed by a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.dtypes import F32, DType
from herd.models.architecture import Config, architecture_of
from herd.models.llama import LlamaConfig
from herd.models.llama3_vision import Llama3VisionConfig
from herd.models.llama3_vision_encoder import EncoderConfig
from herd.models.llama4 import Llama4Config, every
from herd.models.llama4_vision import Llama4VisionConfig
from herd.models.rope import Llama3, Rope
from herd.models.weights import Dense, Kind, Matrix, TensorSpec, stored
from herd.quant import quantize

POOL_COLUMNS = 256
# Rows are multiples of 256, so that every block format fits.
_TINY: dict[str, Any] = {
    "width": 256,
    "num_layers": 2,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_width": 32,
    "ffn_width": 512,
    "vocab_size": 320,
    "context_length": 512,
    "norm_eps": 1e-5,
}


def tiny_llama(**changes: Any) -> LlamaConfig:
    """A llama of two layers with grouped-query attention, 1.5 million parameters; `changes` are fields of the config."""
    facts = {**_TINY, **changes}
    facts.setdefault("rope", Rope(10000.0, facts["head_width"]))
    return LlamaConfig(**facts)


def tiny_llama3_vision(**changes: Any) -> Llama3VisionConfig:
    """A Llama 3.2 Vision with crossing blocks before two of four layers; tiles of 2 x 2 patches. `changes` are fields of the config."""
    vision = EncoderConfig(
        tile=32, patch=16, max_tiles=4, width=256, num_layers=4, num_global_layers=2, num_heads=4, ffn_width=512, kept=(1, 3)
    )
    facts = {**_TINY, "num_layers": 4, "ffn_width": 768, "crossing": (1, 3), "vision": vision, "picture_aliases": (311,), **changes}
    facts.setdefault("rope", Rope(10000.0, facts["head_width"]))
    return Llama3VisionConfig(**facts)


def tiny_llama4(**changes: Any) -> Llama4Config:
    """A Llama 4 of four layers: experts in the second and fourth, no rotation in the last; chunks, steps of temperature and the
    original context are far shorter than the prompts of tests. `changes` are fields of the config."""
    rotary = tuple(layer for layer in range(4) if layer not in every(4, 4))
    facts: dict[str, Any] = {
        **_TINY,
        "num_layers": 4,
        "expert_width": 256,
        "num_experts": 4,
        "expert_layers": every(2, 4),
        "rotary_layers": rotary,
        "chunked_layers": rotary,
        "chunk": 24,
        "qk_norm": True,
        "temper_floor": 16.0,
        "temper_scale": 0.5,
        "rope": Rope(500000.0, 32, Llama3(16.0, 1.0, 1.0, 64)),
        **changes,
    }
    return Llama4Config(**facts)


def tiny_llama4_vision(**changes: Any) -> Llama4VisionConfig:
    """The vision part of a tiny Llama 4: tiles of 4 x 4 patches, four rows for each. `changes` are fields of the config."""
    facts: dict[str, Any] = {
        "width": 256,
        "num_layers": 2,
        "num_heads": 4,
        "ffn_width": 1024,
        "tile": 64,
        "patch": 16,
        "merge": 2,
        "adapter_width": 256,
        "picture_token": 319,
        **changes,
    }
    return Llama4VisionConfig(**facts)


def random_values(spec: TensorSpec, seed: int = 0) -> NDArray[np.float32]:
    """Values of one weight, sized so that activations stay near 1 and logits spread like a real model's. The name takes part in
    the seed, so that no two weights are alike."""
    values = _random(spec, seed).standard_normal(spec.shape).astype(np.float32)
    return 1 + values / 10 if spec.kind is Kind.NORM else values * _spread(spec)


def random_leaves(cfg: Config, seed: int = 0, dtype: DType | Callable[[TensorSpec], DType] = F32) -> dict[str, Matrix]:
    """All weights of `cfg` by name, matrices stored as `dtype` (or as it says for each), norms and biases as F32. Block formats
    need columns in multiples of 256. Not to be written to: models of a like shape share them."""
    return {
        spec.name: _random_leaf(spec, seed, dtype if isinstance(dtype, DType) else dtype(spec))
        for spec in architecture_of(cfg).tensors(cfg)
    }


def dense_f32(values: NDArray[np.floating[Any]]) -> Dense:
    """An F32 leaf of these values."""
    array = np.ascontiguousarray(values, np.float32)
    return Dense(F32, array.shape, array.reshape(-1, array.shape[-1]).view(np.uint8))


@lru_cache(maxsize=1024)
def _random_leaf(spec: TensorSpec, seed: int, dtype: DType) -> Matrix:
    if len(spec.shape) == 1:
        return dense_f32(random_values(spec, seed))
    if not dtype.is_block:
        return stored(dtype, spec.shape, quantize(dtype, random_values(spec, seed).reshape(-1, spec.shape[-1])))
    pool = _pool(dtype, _spread(spec))
    *counts, columns = spec.shape
    rows = math.prod(counts)
    chosen = _random(spec, seed).integers(0, len(pool), (rows, columns // POOL_COLUMNS))
    return stored(dtype, spec.shape, pool[chosen].reshape(rows, -1))


@lru_cache(maxsize=256)
def _pool(dtype: DType, spread: float) -> NDArray[np.uint8]:
    """Quantised stretches of `POOL_COLUMNS` values to build rows from: searching for good scales takes seconds a model."""
    values = np.random.default_rng(dtype.ggml_id).standard_normal((512, POOL_COLUMNS)).astype(np.float32)
    return quantize(dtype, values * np.float32(spread))


def _random(spec: TensorSpec, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, *spec.name.encode()])


def _spread(spec: TensorSpec) -> float:
    """Standard deviation of a weight's values."""
    match spec.kind:
        case Kind.EMBEDDING | Kind.BIAS:
            return 0.25
        case Kind.GATE:
            return 0.5
        case _:
            return 2 / spec.shape[-1] ** 0.5
