"""The operations of `models/ops.py` in numpy: the plainest code that means what the contract says.

Everything is computed in one type, float32 or float64. Numbers too small for that type become denormals as IEEE 754 has
them, nothing is flushed; infinities and not-a-numbers travel on to the logits, where the backend refuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.reference.arrays import Arrays, Floats, rounded
from herd.backends.reference.pages import LayerCache
from herd.dtypes import DType
from herd.models.weights import Adapted, Blocks, Dense, Matrix, Vector
from herd.quant import quantize_activations

SCORES_BYTES = 64 << 20


class NumpyOps:
    """`Ops` in numpy.

    `int8`: block-quantised matrices are multiplied with activations that went through `quant.quantize_activations`, as the
    CPU backend does; the products and sums are then those of the compute type. `plain_dtype` (F16 or BF16): plain matrices
    and what they are multiplied with are rounded to it first. Both make this the plain implementation that a fast one is
    measured against.
    """

    def __init__(self, arrays: Arrays, dtype: np.dtype[Any], int8: bool = False, plain_dtype: DType | None = None) -> None:
        self._arrays = arrays
        self._dtype = dtype
        self._int8 = int8
        self._plain_dtype = plain_dtype

    def embed(self, tokens_T: NDArray[np.int64], table: Matrix) -> Floats:
        if isinstance(table, Adapted):
            down, up = self._arrays.get(table.down), self._arrays.rows(table.up, tokens_T)
            y_TD: Floats = self._arrays.rows(table.base, tokens_T) + self._dtype.type(table.scale) * (up @ down)
            return y_TD
        return self._arrays.rows(table, tokens_T)

    def linear(self, x: Floats, w: Matrix, bias: Vector | None = None) -> Floats:
        if isinstance(w, Adapted):
            y = self._product(x, w.base)
            y = y + self._dtype.type(w.scale) * (x @ self._arrays.get(w.down).T @ self._arrays.get(w.up).T)
        else:
            y = self._product(x, w)
        return y if bias is None else y + self._arrays.get(bias)

    def rms_norm(self, x_TD: Floats, weight: Vector | None, eps: float) -> Floats:
        mean_square = np.mean(x_TD * x_TD, axis=-1, keepdims=True)
        normed: Floats = x_TD / np.sqrt(mean_square + self._dtype.type(eps))
        return normed if weight is None else normed * self._arrays.get(weight)

    def heads(self, x: Floats, num_heads: int) -> Floats:
        return x.reshape(len(x), num_heads, -1)

    def merge_heads(self, x_TNH: Floats) -> Floats:
        return x_TNH.reshape(len(x_TNH), -1)

    def rotary(self, positions_T: NDArray[np.int64], frequencies: Sequence[float], magnitude: float) -> Floats:
        """cos and sin [2, T, width / 2]. Angles are float64 in any case: position times frequency loses digits quickly."""
        angles = positions_T[:, None] * np.asarray(frequencies, np.float64)
        return (np.stack([np.cos(angles), np.sin(angles)]) * magnitude).astype(self._dtype)

    def rotate(self, x_TNH: Floats, rotary_TH: Floats) -> Floats:
        cos, sin = rotary_TH[:, :, None, :]
        width = 2 * cos.shape[-1]
        even, odd = x_TNH[..., 0:width:2], x_TNH[..., 1:width:2]
        y_TNH = x_TNH.copy()
        y_TNH[..., 0:width:2] = even * cos - odd * sin
        y_TNH[..., 1:width:2] = even * sin + odd * cos
        return y_TNH

    def attention(self, q_TNH: Floats, k_TKH: Floats, v_TKH: Floats, cache: LayerCache, scale: float) -> Floats:
        cache.write(k_TKH, v_TKH)
        y_TNH = np.empty_like(q_TNH)
        for place in cache.places:
            keys, values = (stored[place.slots].astype(self._dtype, copy=False) for stored in (cache.keys, cache.values))
            y_TNH[place.rows] = _attend(q_TNH[place.rows], keys, values, place.start, scale)
        return y_TNH

    def silu_gate(self, gate_TF: Floats, up_TF: Floats) -> Floats:
        y_TF: Floats = gate_TF / (1 + np.exp(-gate_TF)) * up_TF
        return y_TF

    def add(self, x: Floats, y: Floats) -> Floats:
        return x + y

    def select(self, x_TD: Floats, rows_R: NDArray[np.int64]) -> Floats:
        return x_TD[rows_R]

    def _product(self, x: Floats, w: Dense | Blocks) -> Floats:
        """x w^T, with x as this storage format's rule wants it."""
        if self._int8 and isinstance(w, Blocks):
            x = self._as_int8(x)
        elif self._plain_dtype is not None and isinstance(w, Dense):
            x = rounded(x, self._plain_dtype).astype(self._dtype)
        y: Floats = x @ self._arrays.get(w).T
        return y

    def _as_int8(self, x_TD: Floats) -> Floats:
        """What is left of activations after int8 with one scale for every 32."""
        q_TD, scale = quantize_activations(np.ascontiguousarray(x_TD, np.float32))
        grouped: Floats = q_TD.reshape(*scale.shape, -1).astype(self._dtype) * scale[..., None].astype(self._dtype)
        return grouped.reshape(x_TD.shape)


def _attend(q_TNH: Floats, k_SKH: Floats, v_SKH: Floats, start: int, scale: float) -> Floats:
    """One sequence: the token in row t is at position start + t and sees keys 0 .. start + t. A few rows at a time, so that
    the scores of a long prompt stay within `SCORES_BYTES`; row by row when a value is not a number, which even a weight of
    zero would carry to tokens before it."""
    length, heads, _ = q_TNH.shape
    rows = max(1, SCORES_BYTES // (heads * len(k_SKH) * q_TNH.itemsize)) if np.isfinite(v_SKH).all() else 1
    pieces = []
    for first in range(0, length, rows):
        q_tNH = q_TNH[first : first + rows]
        visible = start + first + len(q_tNH)
        pieces.append(_attend_rows(q_tNH, k_SKH[:visible], v_SKH[:visible], start + first, scale))
    return np.concatenate(pieces)


def _attend_rows(q_TNH: Floats, k_SKH: Floats, v_SKH: Floats, start: int, scale: float) -> Floats:
    length, num_heads, head_width = q_TNH.shape
    num_kv_heads = k_SKH.shape[1]
    q_KGTH = q_TNH.reshape(length, num_kv_heads, -1, head_width).transpose(1, 2, 0, 3)
    scores = q_KGTH @ k_SKH.transpose(1, 2, 0)[:, None] * q_TNH.dtype.type(scale)
    is_future = np.arange(len(k_SKH)) > start + np.arange(length)[:, None]
    scores[..., is_future] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    y_KGTH: Floats = weights @ v_SKH.transpose(1, 0, 2)[:, None]
    return y_KGTH.transpose(2, 0, 1, 3).reshape(length, num_heads, -1)
