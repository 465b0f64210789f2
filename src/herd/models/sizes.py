"""Bytes and counts of a model, all summed from the one list of its weights and the shapes of its operations.

"Bytes" are of what a thing needs, not of what a program happens to hold; backends report the latter (`Backend.memory`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from herd.dtypes import F16, F32, DType
from herd.models.architecture import Config, architecture_of
from herd.models.weights import Kind, TensorSpec, stored_bytes


def count_parameters(cfg: Config) -> int:
    """Number of values in all weights; a tied head counts once."""
    return sum(spec.count for spec in architecture_of(cfg).tensors(cfg))


def ffn_width(width: int, multiple_of: int, multiplier: float | None = None) -> int:
    """The feed-forward width that Meta's params.json means: two thirds of 4 * width, times `ffn_dim_multiplier`, both cut to
    whole numbers, then rounded up to a multiple of `multiple_of`."""
    wanted = 2 * 4 * width // 3
    if multiplier is not None:
        wanted = int(multiplier * wanted)
    return math.ceil(wanted / multiple_of) * multiple_of


def weight_bytes(cfg: Config, dtype: DType | Callable[[TensorSpec], DType]) -> int:
    """Bytes of all weights, stored in one format or in the one that a function names for each of them. `FileProblem` if a
    block format does not divide a row."""
    chosen: Callable[[TensorSpec], DType] = (lambda _: dtype) if isinstance(dtype, DType) else dtype
    return sum(stored_bytes(chosen(spec), spec.shape) for spec in architecture_of(cfg).tensors(cfg))


def cache_bytes_per_token(cfg: Config, dtype: DType = F16) -> int:
    """Keys and values of one token over all layers."""
    return sum(2 * stored_bytes(dtype, (shape.num_kv_heads, shape.head_width)) for shape in architecture_of(cfg).caches(cfg))


def cache_bytes(cfg: Config, num_tokens: int, page_tokens: int, dtype: DType = F16) -> int:
    """The cache of one sequence of `num_tokens`, in whole pages of `page_tokens`."""
    return math.ceil(num_tokens / page_tokens) * page_tokens * cache_bytes_per_token(cfg, dtype)


def buffer_bytes(cfg: Config, num_tokens: int, num_outputs: int) -> int:
    """Float32 activations that one step of `num_tokens` needs at the same time, and its logits.

    Besides the residual stream x and its norm, either attention's (queries and what is read with them, keys, values) or the
    feed-forward's (gate, up, their product) are alive; the larger counts. The widest feed-forward is the widest thing that a matrix
    of a layer reads.
    """
    model = architecture_of(cfg)
    attention = max(((2 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_width for shape in model.caches(cfg)), default=0)
    ffn = max((spec.shape[-1] for spec in model.tensors(cfg) if spec.kind in (Kind.MATRIX, Kind.EXPERTS)), default=0)
    widest = 2 * cfg.width + max(attention, 3 * ffn)
    return F32.block_bytes * (num_tokens * widest + num_outputs * (cfg.width + cfg.vocab_size))
