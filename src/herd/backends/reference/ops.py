"""The operations of `models/ops.py` in numpy: the plainest code that means what the contract says.

Everything is computed in one type, float32 or float64. Numbers too small for that type become denormals as IEEE 754 has
them, nothing is flushed; infinities and not-a-numbers travel on to the logits, where the backend refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import Watch
from herd.backends.reference import integer_cache
from herd.backends.reference.arrays import Arrays, Floats, rounded
from herd.backends.reference.integer_cache import IntegerRows
from herd.backends.reference.memory import Memory
from herd.backends.reference.pages import IntegerLayerCache, LayerCache
from herd.dtypes import DType
from herd.errors import UsageError
from herd.models.ops import NO_ALIASES, Chunks, Experts, Sliding, Window
from herd.models.weights import Adapted, Blocks, Dense, Matrix, Vector
from herd.quant import quantize_activations

SCORES_BYTES = 64 << 20


class PlainOps:
    """What language models and encoders have in common, in numpy.

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

    def embed(self, tokens_T: Sequence[int] | NDArray[np.int64], table: Matrix, *, aliases: Mapping[int, int] = NO_ALIASES) -> Floats:
        tokens_T = np.asarray(tokens_T, np.int64)
        for token, row in aliases.items():
            tokens_T = np.where(tokens_T == token, row, tokens_T)
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

    def rms_norm(self, x: Floats, weight: Vector | None, eps: float, *, centred: bool = False) -> Floats:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        normed: Floats = x / np.sqrt(mean_square + self._dtype.type(eps))
        if weight is None:
            return normed
        values = self._arrays.get(weight)
        return normed * (1 + values if centred else values)

    def heads(self, x: Floats, num_heads: int) -> Floats:
        return x.reshape(len(x), num_heads, -1)

    def merge_heads(self, x_TNH: Floats) -> Floats:
        return x_TNH.reshape(len(x_TNH), -1)

    def rotate(self, x_TNH: Floats, rotary_TH: Floats) -> Floats:
        cos, sin = rotary_TH[:, :, None, :]
        width = 2 * cos.shape[-1]
        even, odd = x_TNH[..., 0:width:2], x_TNH[..., 1:width:2]
        y_TNH = x_TNH.copy()
        y_TNH[..., 0:width:2] = even * cos - odd * sin
        y_TNH[..., 1:width:2] = even * sin + odd * cos
        return y_TNH

    def add(self, x: Floats, y: Floats) -> Floats:
        return x + y

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


class NumpyOps(PlainOps):
    """`Ops` in numpy. `watch` is what the running step's plan wants to read or replace, `values` what was read; `names`, if it is
    a list, collects the names of all values."""

    watch: Watch | None = None
    names: list[str] | None = None

    def begin(self, watch: Watch | None) -> dict[str, Any]:
        """Before a step; gives the dictionary that its values will be in."""
        self.watch, self.values = watch, dict[str, Any]()
        return self.values

    def rotary(self, positions_T: NDArray[np.int64], frequencies: Sequence[float], magnitude: float) -> Floats:
        """cos and sin [2, T, width / 2]. Angles are float64 in any case: position times frequency loses digits quickly."""
        angles = positions_T[:, None] * np.asarray(frequencies, np.float64)
        return (np.stack([np.cos(angles), np.sin(angles)]) * magnitude).astype(self._dtype)

    def temper(self, x_TNH: Floats, positions_T: NDArray[np.int64], floor: float, scale: float) -> Floats:
        factors_T = 1 + scale * np.log(np.floor((positions_T + 1) / floor) + 1)
        y_TNH: Floats = x_TNH * factors_T[:, None, None].astype(self._dtype)
        return y_TNH

    def attention(
        self,
        q_TNH: Floats,
        k_TKH: Floats,
        v_TKH: Floats,
        cache: LayerCache | IntegerLayerCache,
        scale: float,
        *,
        window: Window | None = None,
        name: str = "",
    ) -> Floats:
        cache.write(k_TKH, v_TKH)
        y_TNH = np.empty_like(q_TNH)
        keep: list[Floats] | None = None
        if self.watch is not None and name in self.watch.read | self.watch.patch.keys():
            keep = self.values[name] = []
        self._note(name)
        for place in cache.places:
            if isinstance(cache, IntegerLayerCache):
                rows = cache.rows(place)
                if keep is None:
                    y_TNH[place.rows] = _attend_integers(q_TNH[place.rows], rows, place.start, scale, window)
                    continue
                keys, values = (each.floats(self._dtype) for each in rows)
            else:
                keys, values = (stored[place.slots].astype(self._dtype, copy=False) for stored in (cache.keys, cache.values))
            if keep is None:
                y_TNH[place.rows] = _attend(q_TNH[place.rows], keys, values, place.start, scale, window)
            else:
                y_TNH[place.rows] = self._attend_openly(name, q_TNH[place.rows], keys, values, place.start, scale, window)
        return y_TNH

    def _note(self, name: str) -> None:
        if self.names is not None and name:
            self.names.append(name)

    def _attend_openly(
        self, name: str, q_TNH: Floats, k_SKH: Floats, v_SKH: Floats, start: int, scale: float, window: Window | None
    ) -> Floats:
        """As `_attend`, all rows at once, with the softmax to be read or replaced: [N, t, positions]."""
        assert self.watch is not None
        weights = attention_weights(q_TNH, k_SKH, start, scale, window)
        shape = weights.shape
        weights_NTS = weights.reshape(-1, *shape[2:])
        if name in self.watch.patch:
            weights_NTS = patched(name, self.watch, weights_NTS).astype(self._dtype)
        self.values[name].append(weights_NTS.astype(np.float32))
        return read_values(weights_NTS.reshape(shape), v_SKH)

    def cross_attention(self, q_TNH: Floats, memory: Memory, scale: float) -> Floats:
        y_TNH = np.zeros_like(q_TNH)
        for rows, keys, values in memory.pieces:
            if isinstance(keys, list) or isinstance(values, list):
                assert isinstance(keys, list) and isinstance(values, list)
                y_TNH[rows] = integer_cache.attend(q_TNH[rows], list(zip(keys, values, strict=True)), scale)
                continue
            q_KGTH = _by_kv_head(q_TNH[rows], keys.shape[1])
            scores = q_KGTH @ keys.transpose(1, 2, 0)[:, None] * self._dtype.type(scale)
            y_TNH[rows] = read_values(_exponentials(scores), values)
        return y_TNH

    def gated_add(self, x: Floats, y: Floats, gate: Vector, seen: NDArray[np.bool_] | None = None) -> Floats:
        added: Floats = np.tanh(self._arrays.get(gate)) * y
        return x + (added if seen is None else np.where(seen[:, None], added, 0))

    def silu_gate(self, gate_TF: Floats, up_TF: Floats) -> Floats:
        y_TF: Floats = gate_TF / (1 + np.exp(-gate_TF)) * up_TF
        return y_TF

    def sigmoid_gate(self, x: Floats, gate: Floats) -> Floats:
        y: Floats = x / (1 + np.exp(-gate))
        return y

    def experts(self, x_TD: Floats, scores_TE: Floats, w: Experts, num_chosen: int) -> Floats:
        chosen_TX = np.argsort(-scores_TE, axis=-1, kind="stable")[:, :num_chosen]
        y_TD = np.zeros_like(x_TD)
        for expert in np.unique(chosen_TX):
            rows = np.flatnonzero((chosen_TX == expert).any(axis=-1))
            x = x_TD[rows] / (1 + np.exp(-scores_TE[rows, expert, None]))
            gate, up, down = (_matrix_of(leaf, int(expert)) for leaf in (w.gate, w.up, w.down))
            y_TD[rows] += self._product(self.silu_gate(self._product(x, gate), self._product(x, up)), down)
        return y_TD

    def soft_cap(self, x: Floats, factor: float, cap: float) -> Floats:
        y: Floats = self._dtype.type(cap) * np.tanh(x * self._dtype.type(factor) / self._dtype.type(cap))
        return y

    def overlay(self, x_TD: Floats, pictures: tuple[NDArray[np.int64], Floats] | None) -> Floats:
        if pictures is None:
            return x_TD
        y_TD = x_TD.copy()
        y_TD[pictures[0]] = pictures[1]
        return y_TD

    def select(self, x_TD: Floats, rows_R: NDArray[np.int64]) -> Floats:
        return x_TD[rows_R]

    def tap(self, name: str, x: Floats) -> Floats:
        self._note(name)
        if self.watch is None:
            return x
        if name in self.watch.patch:
            x = patched(name, self.watch, x).astype(self._dtype)
        if name in self.watch.read:
            self.values[name] = x.astype(np.float32)
        return x


def patched(name: str, watch: Watch, value: Floats) -> NDArray[np.float32]:
    """What a researcher's function makes of a value. `UsageError` for another shape."""
    made = np.asarray(watch.patch[name](value.astype(np.float32)), np.float32)
    if made.shape != value.shape:
        raise UsageError(f"The patch of {name} gave shape {list(made.shape)}; the value has {list(value.shape)}.")
    return made


def _matrix_of(leaf: Matrix, expert: int) -> Dense | Blocks:
    """One expert's matrix of a stack, a leaf of its own."""
    if isinstance(leaf, Adapted):
        raise UsageError("Adapters over the stacked matrices of experts are not supported.")
    _, rows, columns = leaf.shape
    data = np.asarray(leaf.data).reshape(leaf.shape[0], -1)[expert]
    return type(leaf)(leaf.dtype, (rows, columns), data)


def _attend(q_TNH: Floats, k_SKH: Floats, v_SKH: Floats, start: int, scale: float, window: Window | None = None) -> Floats:
    """One sequence: the token in row t is at position start + t and sees keys 0 .. start + t as far as `window` reaches. A few
    rows at a time, so that the scores of a long prompt stay within `SCORES_BYTES`; row by row when a value is not a number,
    which even a weight of zero would carry to tokens before it."""
    length, heads, _ = q_TNH.shape
    rows = max(1, SCORES_BYTES // (heads * len(k_SKH) * q_TNH.itemsize)) if np.isfinite(v_SKH).all() else 1
    pieces = []
    for first in range(0, length, rows):
        q_tNH = q_TNH[first : first + rows]
        visible = start + first + len(q_tNH)
        weights = attention_weights(q_tNH, k_SKH[:visible], start + first, scale, window)
        pieces.append(read_values(weights, v_SKH[:visible]))
    return np.concatenate(pieces)


def attention_weights(q_TNH: Floats, k_SKH: Floats, start: int, scale: float, window: Window | None) -> Floats:
    """How much each query takes of each position [K, G, T, S]."""
    scores = _by_kv_head(q_TNH, k_SKH.shape[1]) @ k_SKH.transpose(1, 2, 0)[:, None] * q_TNH.dtype.type(scale)
    scores[..., _is_hidden(len(q_TNH), len(k_SKH), start, window)] = -np.inf
    return _exponentials(scores)


def _is_hidden(length: int, num_keys: int, start: int, window: Window | None) -> NDArray[np.bool_]:
    """[T, S]: which keys the token in row t, at position start + t, does not see."""
    keys_S, queries_T1 = np.arange(num_keys), start + np.arange(length)[:, None]
    is_hidden: NDArray[np.bool_] = keys_S > queries_T1
    match window:
        case Chunks(tokens):
            is_hidden |= keys_S // tokens != queries_T1 // tokens
        case Sliding(tokens):
            is_hidden |= keys_S <= queries_T1 - tokens
    return is_hidden


def _attend_integers(
    q_TNH: Floats, rows: tuple[IntegerRows, IntegerRows], start: int, scale: float, window: Window | None = None
) -> Floats:
    """As `_attend`, over a cache of integers."""
    length, heads, _ = q_TNH.shape
    some = max(1, SCORES_BYTES // (heads * len(rows[0]) * 8))
    hidden_TS = _is_hidden(length, len(rows[0]), start, window)
    pieces = [integer_cache.attend(q_TNH[at : at + some], [rows], scale, hidden_TS[at : at + some]) for at in range(0, length, some)]
    return np.concatenate(pieces)


def _exponentials(scores: Floats) -> Floats:
    weights: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _by_kv_head(q_TNH: Floats, num_kv_heads: int) -> Floats:
    """[T, N, H] -> [K, G, T, H]."""
    length, _, head_width = q_TNH.shape
    return q_TNH.reshape(length, num_kv_heads, -1, head_width).transpose(1, 2, 0, 3)


def read_values(weights: Floats, v_SKH: Floats) -> Floats:
    """[K, G, T, S] of values [S, K, H] -> [T, N, H]."""
    y_KGTH: Floats = weights @ v_SKH.transpose(1, 0, 2)[:, None]
    return y_KGTH.transpose(2, 0, 1, 3).reshape(weights.shape[2], -1, v_SKH.shape[-1])
