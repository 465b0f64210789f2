"""Keys and values as small integers, and attention that multiplies nothing but integers: the definition of `kv_cache` "int8" and "int4".

A key or value of one head is kept in groups of 32 components, the last one filled up with zeros, each with a float16 scale:

    int8   scale = max|x| / 127                             component = scale * rint(x / scale)
    int4   scale = (the x of largest magnitude) / -127      component = scale * the nearest of the 16 values of IQ4

With int4 heads are rotated first: each run of n components, n the largest power of two that divides the width, by the orthonormal
Walsh-Hadamard matrix. Queries are rotated too, and what attention reads is rotated back. Queries are rounded to integers of 16 bits
with a scale for each head; so are the weights of 64 keys, relative to the largest of them and times the values' scales, with a scale for
each group. What is then multiplied and summed are integers, which is exact in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import PAGE_TOKENS
from herd.quant.reading import IQ4_VALUES
from herd.records import dataclass

Floats = NDArray[Any]
GROUP = 32
FORMATS = ("int8", "int4")
_LARGEST = 32767
_TINY = 1e-30
_MIDDLES = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2


@dataclass(frozen=True, slots=True)
class IntegerRows:
    """Keys or values of S tokens: integers [S, K, P], P the head width rounded up to whole groups, and scales [S, K, P / 32]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    head_width: int
    is_rotated: bool

    def __len__(self) -> int:
        return len(self.codes)

    def floats(self, dtype: np.dtype[Any]) -> Floats:
        """What they stand for [S, K, H], rotated back."""
        groups = self.codes.reshape(*self.scales.shape, GROUP).astype(dtype) * self.scales.astype(dtype)[..., None]
        x = groups.reshape(self.codes.shape)[..., : self.head_width]
        return hadamard(x) if self.is_rotated else np.asarray(x)


def num_groups(head_width: int) -> int:
    return -(-head_width // GROUP)


def rounded(x_SKH: Floats, form: str) -> IntegerRows:
    """Keys or values as the cache keeps them. What is not a number gets a scale that is none."""
    head_width, is_rotated = x_SKH.shape[-1], form == "int4"
    x = x_SKH.astype(np.float32)
    x = hadamard(x) if is_rotated else x
    groups = _padded(x).reshape(*x.shape[:-1], num_groups(head_width), GROUP)
    with np.errstate(all="ignore"):
        if form == "int8":
            scales = (np.abs(groups).max(axis=-1) / np.float32(127)).astype(np.float16)
            codes = np.clip(np.rint(groups * _inverse(scales)), -127, 127)
        else:
            extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], axis=-1)[..., 0]
            scales = (extreme / np.float32(-127)).astype(np.float16)
            codes = IQ4_VALUES[np.searchsorted(_MIDDLES, groups * _inverse(scales))]
        codes = np.nan_to_num(codes, nan=0.0)
    return IntegerRows(codes.astype(np.int8).reshape(*x.shape[:-1], -1), scales, head_width, is_rotated)


def hadamard(x: Floats) -> Floats:
    """The last axis, in runs of the largest power of two that divides it, by the orthonormal Walsh-Hadamard matrix."""
    width = x.shape[-1]
    run = width & -width
    y = x.reshape(*x.shape[:-1], width // run, run)
    half = 1
    while half < run:
        pairs = y.reshape(*y.shape[:-1], run // (2 * half), 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack([a + b, a - b], axis=-2).reshape(y.shape)
        half *= 2
    turned: Floats = y.reshape(x.shape) * x.dtype.type(1 / np.sqrt(np.float32(run)))
    return turned


def attend(
    q_TNH: Floats, pieces: Sequence[tuple[IntegerRows, IntegerRows]], scale: float, is_hidden_TS: NDArray[np.bool_] | None = None
) -> Floats:
    """softmax(scale q k^T) v over the rows of all pieces, each of which begins a page, but for what is hidden from a query."""
    keys, values, exists_S = _in_pages(pieces)
    length, heads, head_width = q_TNH.shape
    kv_heads, dtype = keys.codes.shape[1], q_TNH.dtype
    q = q_TNH * dtype.type(scale)
    q_TNP = _padded(hadamard(q) if keys.is_rotated else q)
    integers, factors_TN1 = _as_integers(q_TNP)
    q_KMGC = _by_kv_head(integers, kv_heads).reshape(kv_heads, -1, num_groups(head_width), GROUP)
    scores_KMS = np.zeros((kv_heads, q_KMGC.shape[1], len(keys)), dtype)
    codes_SKGC = keys.codes.reshape(*keys.scales.shape, GROUP).astype(np.float64)
    for group in range(num_groups(head_width)):
        sums = q_KMGC[:, :, group] @ codes_SKGC[:, :, group].transpose(1, 2, 0)
        scores_KMS += sums.astype(dtype) * keys.scales[:, :, group].T[:, None].astype(dtype)
    scores_KMS *= _by_kv_head(factors_TN1, kv_heads)
    hidden_TS = np.broadcast_to(~exists_S, (length, len(keys))).copy()
    if is_hidden_TS is not None:
        hidden_TS[:, exists_S] |= is_hidden_TS
    scores_KMS.reshape(kv_heads, -1, length, len(keys))[..., hidden_TS] = -np.inf
    y_KMP = _read(scores_KMS, values, dtype)
    y_TNH = y_KMP.reshape(kv_heads, -1, length, y_KMP.shape[-1]).transpose(2, 0, 1, 3).reshape(length, heads, -1)[..., :head_width]
    return hadamard(y_TNH) if values.is_rotated else y_TNH


def _read(scores_KMS: Floats, values: IntegerRows, dtype: np.dtype[Any]) -> Floats:
    """The softmax of scores, of values [K, M, P]: page by page, the weights of each as integers."""
    kv_heads, rows, _ = scores_KMS.shape
    pages_KMBS = scores_KMS.reshape(kv_heads, rows, -1, PAGE_TOKENS)
    tops_KMB = pages_KMBS.max(axis=-1)
    # What is behind everything that is seen has no maximum.
    weights = np.where(np.isneginf(tops_KMB)[..., None], 0, np.exp(pages_KMBS - np.where(np.isneginf(tops_KMB), 0, tops_KMB)[..., None]))
    shares_KMB = np.exp(tops_KMB - tops_KMB.max(axis=-1, keepdims=True))
    total_KM1 = (shares_KMB * weights.sum(axis=-1)).sum(axis=-1)[..., None]
    parts = []
    for group in range(values.scales.shape[-1]):
        scales_KBS = values.scales[..., group].T.astype(dtype).reshape(kv_heads, 1, -1, PAGE_TOKENS)
        integers, factors = _as_integers(np.where(weights == 0, 0, weights * scales_KBS))
        codes = values.codes[..., GROUP * group : GROUP * (group + 1)].astype(np.float64).reshape(-1, PAGE_TOKENS, kv_heads, GROUP)
        sums_KBMC = integers.transpose(0, 2, 1, 3) @ codes.transpose(2, 0, 1, 3)
        parts.append((sums_KBMC.astype(dtype) * (factors * shares_KMB[..., None]).transpose(0, 2, 1, 3)).sum(axis=1))
    y_KMP: Floats = np.concatenate(parts, axis=-1) / total_KM1
    return y_KMP


def _as_integers(x: Floats) -> tuple[NDArray[np.float64], Floats]:
    """The last axis as integers up to 32767, in float64, and what one of them stands for."""
    most = np.abs(x).max(axis=-1, keepdims=True)
    is_tiny = most <= _TINY
    factors = np.where(is_tiny, 0, x.dtype.type(_LARGEST) / np.where(is_tiny, 1, most))
    return np.rint(x * factors).astype(np.float64), np.where(is_tiny, 1, most / x.dtype.type(_LARGEST)).astype(x.dtype)


def _in_pages(pieces: Sequence[tuple[IntegerRows, IntegerRows]]) -> tuple[IntegerRows, IntegerRows, NDArray[np.bool_]]:
    """Keys and values of all pieces, each filled up to whole pages, and which rows are not filling."""
    exists = [np.arange(-(-len(keys) // PAGE_TOKENS) * PAGE_TOKENS) < len(keys) for keys, _ in pieces]
    keys, values = (_filled([piece[which] for piece in pieces], [len(rows) for rows in exists]) for which in (0, 1))
    return keys, values, np.concatenate(exists)


def _filled(pieces: Sequence[IntegerRows], lengths: Sequence[int]) -> IntegerRows:
    def fill(rows: NDArray[Any], length: int) -> NDArray[Any]:
        return np.concatenate([rows, np.zeros((length - len(rows), *rows.shape[1:]), rows.dtype)])

    codes = np.concatenate([fill(piece.codes, length) for piece, length in zip(pieces, lengths, strict=True)])
    scales = np.concatenate([fill(piece.scales, length) for piece, length in zip(pieces, lengths, strict=True)])
    return IntegerRows(codes, scales, pieces[0].head_width, pieces[0].is_rotated)


def _padded(x: Floats) -> Floats:
    """The last axis filled up with zeros to whole groups."""
    missing = -x.shape[-1] % GROUP
    return np.concatenate([x, np.zeros((*x.shape[:-1], missing), x.dtype)], axis=-1) if missing else x


def _inverse(scales: NDArray[np.float16]) -> Floats:
    floats = scales.astype(np.float32)[..., None]
    return np.where(floats == 0, np.float32(0), np.float32(1) / np.where(floats == 0, np.float32(1), floats))


def _by_kv_head(x_TNP: Floats, num_kv_heads: int) -> Floats:
    """[T, N, P] -> [K, G * T, P]."""
    length, _, width = x_TNP.shape
    by_head: Floats = x_TNP.reshape(length, num_kv_heads, -1, width).transpose(1, 2, 0, 3).reshape(num_kv_heads, -1, width)
    return by_head
