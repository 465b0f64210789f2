"""`PictureOps` in numpy: encoders of pictures, and classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.reference.arrays import Floats
from herd.backends.reference.ops import SCORES_BYTES, PlainOps
from herd.models.weights import Matrix, Vector


class NumpyPictureOps(PlainOps):
    """The plainest code that means what `models.ops.PictureOps` says."""

    def patches(self, pixels: Floats, size: int, frames: int = 1) -> Floats:
        if len(pixels) == 1:
            pixels = np.repeat(pixels, frames, axis=0)
        tiles, channels, height, width = pixels.shape
        cut = pixels.reshape(tiles // frames, frames, channels, height // size, size, width // size, size)
        return np.ascontiguousarray(cut.transpose(0, 3, 5, 1, 2, 4, 6)).reshape(-1, frames * channels * size * size)

    def mix(self, table: Matrix, rows: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> Floats:
        index, share = np.asarray(rows, np.int64), np.asarray(shares, self._dtype)
        picked = self.embed(index.reshape(-1), table).reshape(*index.shape, -1)
        y_ID: Floats = (picked * share[..., None]).sum(axis=1)
        return y_ID

    def layer_norm(self, x_ID: Floats, weight: Vector, bias: Vector, eps: float) -> Floats:
        centred = x_ID - x_ID.mean(axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        y_ID: Floats = centred / np.sqrt(variance + self._dtype.type(eps)) * self._arrays.get(weight) + self._arrays.get(bias)
        return y_ID

    def gelu(self, x: Floats) -> Floats:
        y: Floats = x * (0.5 * (1 + _erf(x / math.sqrt(2)))).astype(self._dtype)
        return y

    def tanh(self, x: Floats) -> Floats:
        y: Floats = np.tanh(x)
        return y

    def angles(self, angles: Sequence[Sequence[float]]) -> Floats:
        values = np.asarray(angles, np.float64)
        return np.stack([np.cos(values), np.sin(values)]).astype(self._dtype)

    def attend(
        self,
        q_INH: Floats,
        k_IKH: Floats,
        v_IKH: Floats,
        scale: float,
        lengths: Sequence[int],
        padding: Sequence[bool] | None = None,
    ) -> Floats:
        y_INH = np.empty_like(q_INH)
        first = 0
        for length in lengths:
            group = slice(first, first + length)
            k_NIH, v_NIH = _for_queries(k_IKH[group], q_INH), _for_queries(v_IKH[group], q_INH)
            pads_I = np.zeros(length, bool) if padding is None else np.asarray(padding[group], bool)
            some = max(1, SCORES_BYTES // (q_INH.shape[1] * length * q_INH.itemsize))
            for start in range(0, length, some):
                at = slice(first + start, first + min(start + some, length))
                scores = q_INH[at].transpose(1, 0, 2) @ k_NIH.transpose(0, 2, 1) * self._dtype.type(scale)
                hidden = pads_I[start : start + some, None] & pads_I
                scores += np.where(hidden, np.finfo(self._dtype).min, 0).astype(self._dtype)
                y_INH[at] = (_softmax(scores) @ v_NIH).transpose(1, 0, 2)
            first += length
        assert first == len(q_INH), "groups cover all rows"
        return y_INH

    def relative_attend(
        self, q_INH: Floats, k_INH: Floats, v_INH: Floats, near_kNH: Floats, near_qNH: Floats, buckets: Sequence[Sequence[int]]
    ) -> Floats:
        index = np.asarray(buckets, np.int64)
        q, k, v, near_k, near_q = (x.transpose(1, 0, 2) for x in (q_INH, k_INH, v_INH, near_kNH, near_qNH))
        scores = q @ k.transpose(0, 2, 1)
        scores += np.take_along_axis(q @ near_k.transpose(0, 2, 1), np.broadcast_to(index, scores.shape), axis=-1)
        to_position = np.take_along_axis(k @ near_q.transpose(0, 2, 1), np.broadcast_to(index.T, scores.shape), axis=-1)
        scores += to_position.transpose(0, 2, 1)
        y_INH: Floats = (_softmax(scores / self._dtype.type(math.sqrt(3 * q_INH.shape[-1]))) @ v).transpose(1, 0, 2)
        return y_INH

    def gated_add(self, x: Floats, y: Floats, gate: Vector) -> Floats:
        z: Floats = x + np.tanh(self._arrays.get(gate)) * y
        return z

    def rows(self, x: Floats, index: Sequence[int]) -> Floats:
        return x[np.asarray(index, np.int64)]

    def concat(self, parts: Sequence[Floats]) -> Floats:
        return np.concatenate(parts)

    def join(self, parts: Sequence[Floats]) -> Floats:
        return np.concatenate(parts, axis=-1)

    def fold(self, x: Floats, count: int, *, by_column: bool = False) -> Floats:
        grouped = x.reshape(len(x) // count, count, -1)
        return (grouped.swapaxes(1, 2) if by_column else grouped).reshape(len(grouped), -1)


def _for_queries(x_IKH: Floats, q_INH: Floats) -> Floats:
    """[I, K, H] -> [N, I, H]: each kv head for the query heads that read it."""
    return np.repeat(x_IKH.transpose(1, 0, 2), q_INH.shape[1] // x_IKH.shape[1], axis=0)


def _softmax(scores: Floats) -> Floats:
    weights: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


@lru_cache(maxsize=1)
def _erf_function() -> Any:
    return np.vectorize(math.erf, otypes=[np.float64])


def _erf(x: Floats) -> NDArray[np.float64]:
    values: NDArray[np.float64] = _erf_function()(x.astype(np.float64))
    return values
