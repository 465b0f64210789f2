"""Tiny models: every architectural feature of a real llama at sizes that a test can afford. Random weights, fixed by a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.dtypes import F32, DType
from herd.models.llama import LlamaConfig, tensors
from herd.models.rope import Rope
from herd.models.weights import Dense, Kind, Matrix, TensorSpec, stored

# Rows of 256, so that every block format fits.
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


def random_values(spec: TensorSpec, seed: int = 0) -> NDArray[np.float32]:
    """Values of one weight, the same for every format: sized so that activations stay near 1 and logits spread like a real
    model's. The name takes part in the seed, so that no two weights are alike."""
    random = np.random.default_rng([seed, *spec.name.encode()])
    values = random.standard_normal(spec.shape).astype(np.float32)
    match spec.kind:
        case Kind.NORM:
            return 1 + values / 10
        case Kind.BIAS:
            return values / 4
        case Kind.EMBEDDING:
            return values / 4
        case _:
            return 2 * values / np.sqrt(np.float32(spec.shape[1]))


def random_leaves(cfg: LlamaConfig, seed: int = 0, dtype: DType | Callable[[TensorSpec], DType] = F32) -> dict[str, Matrix]:
    """All weights of `cfg` by name, matrices stored as `dtype` (or as it says for each), norms and biases as F32."""
    leaves: dict[str, Matrix] = {}
    for spec in tensors(cfg):
        chosen = dtype if isinstance(dtype, DType) else dtype(spec)
        values = random_values(spec, seed)
        leaves[spec.name] = dense_f32(values) if len(spec.shape) == 1 else _stored(chosen, values)
    return leaves


def dense_f32(values: NDArray[np.floating[Any]]) -> Dense:
    """An F32 leaf of these values."""
    array = np.ascontiguousarray(values, np.float32)
    return Dense(F32, array.shape, array.reshape(-1, array.shape[-1]).view(np.uint8))


def _stored(dtype: DType, values: NDArray[np.float32]) -> Matrix:
    if dtype is F32:
        return dense_f32(values)
    from herd.quant import quantize

    return stored(dtype, values.shape, quantize(dtype, values))
