"""float32 to stored bytes with a search: every scale is chosen for the smallest weighted error.

    error = sum over the elements of a block of w * (stored value - x)^2
    w = importance of the column * sqrt(mean square of the row + (x / 2)^2)

The importance of a column is the mean square of what is multiplied with it, so that w counts what an error does to the output. It is
known on average only, or not at all: large weights tend to meet large inputs, and count for more, though less than their size.
Scales come from candidates, each refined by weighted least squares; the formats with scales of scales then move the small integer
scales by one, and fit the scale of them again. What is stored is never worse, by this measure, than what the search began with.

Names inside: x, w [..., elements, blocks] (blocks last, so that sums over elements run along memory), G groups, E elements, B blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.dtypes import DType
from herd.errors import FileProblem
from herd.quant import packing
from herd.quant.grids import IQ4, Grid, symmetric
from herd.quant.scales import affine, inverse, scaled_error, signed

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Values that are worked on at once: what fits the nearest caches with a few copies.
CHUNK_VALUES = 1 << 14
# More than any format holds, and squares of it are still numbers.
LARGEST = 1e12


def quantize_fitted(dtype: DType, x: Floats, importance: Floats | None = None) -> Bytes:
    """Stored bytes uint8 [rows, row_bytes] of x float32 [rows, columns], for block formats.

    `importance` [columns], not negative: how much an error in each column counts; None: all the same. `FileProblem` if a row does
    not hold whole blocks, or if a value is not finite or too large for the format.
    """
    rows, columns = x.shape
    row_bytes = dtype.row_bytes(columns)
    if np.any(np.abs(x) > LARGEST):
        raise FileProblem("A weight is too large for a block format, whose scales are float16; store it as bf16 or f32.")
    out = np.empty((x.size // dtype.block, dtype.block_bytes), dtype=np.uint8)
    for at, x_EB, w_EB in _weighted(x, importance, dtype.block, dtype.name):
        with np.errstate(all="ignore"):
            out[at : at + x_EB.shape[1]] = _FITTED[dtype.name](x_EB, w_EB)
    return out.reshape(rows, row_bytes)


def fit_groups(x: Floats, bits: int, group: int, importance: Floats | None = None) -> tuple[NDArray[np.int8], Floats]:
    """Integers int8 [rows, columns] of 4 or 8 bits, and their float32 scales [rows, columns / group], none negative, so that x is
    about integer * scale. Scales are searched for as in block formats; `importance` as there."""
    rows, columns = x.shape
    assert bits in (4, 8) and columns % group == 0
    q = np.empty((x.size // group, group), np.int8)
    scales = np.empty(len(q), np.float32)
    for at, x_EB, w_EB in _weighted(x, importance, group, f"int{bits}"):
        here = slice(at, at + x_EB.shape[1])
        with np.errstate(all="ignore"):
            d_B = np.abs(signed(x_EB, w_EB, _EVEN[bits]))
            if bits == 4:  # the lowest integer has no counterpart: of use where the search wants a positive scale for it
                lower = signed(x_EB, w_EB, symmetric(-8, 7))
                d_B = np.where(lower > 0, lower, d_B)
            low, high = (-8, 7) if bits == 4 else (-127, 127)
            q[here] = np.clip(np.rint(x_EB * inverse(d_B)), low, high).T.astype(np.int8)
        scales[here] = d_B[0]
    return q.reshape(rows, columns), scales.reshape(rows, columns // group)


def _weighted(x: Floats, importance: Floats | None, block: int, name: str) -> Iterator[tuple[int, Floats, Floats]]:
    """(first block, its values, how much an error in each counts) [elements, blocks], some blocks at a time."""
    columns = x.shape[1]
    blocks = np.ascontiguousarray(x, dtype=np.float32).reshape(-1, block)
    per_column = _column_weights(importance, columns).reshape(-1, block)
    if not np.all(np.isfinite(blocks)):
        raise FileProblem(f"A weight is not a finite number; {name} cannot store it.")
    # The mean square of a row says what "small" means in it.
    spread = np.repeat(np.mean(np.square(x, dtype=np.float32), axis=1), columns // block)
    step = max(1, CHUNK_VALUES // block)
    for at in range(0, len(blocks), step):
        chunk = blocks[at : at + step]
        columns_here = per_column[np.arange(at, at + len(chunk)) % len(per_column)]
        x_EB = np.ascontiguousarray(chunk.T)
        yield at, x_EB, np.ascontiguousarray(columns_here.T) * np.sqrt(spread[at : at + step] + np.square(x_EB / 2))


def _column_weights(importance: Floats | None, columns: int) -> Floats:
    """The importance with mean 1, and nowhere nothing: what calibration never saw may still come."""
    if importance is None:
        return np.ones(columns, np.float32)
    mean = float(np.mean(importance, dtype=np.float64))
    if not mean > 0:
        return np.ones(columns, np.float32)
    weights: Floats = np.maximum(importance / mean, np.float32(1e-4)).astype(np.float32)
    return weights


def _rows(values: Floats) -> Floats:
    """[elements, blocks] or [groups, elements, blocks] -> [blocks, all elements]."""
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)


def _codes(values: Floats) -> Bytes:
    return _rows(values).astype(np.uint8)


def _one_scale(x_EB: Floats, w_EB: Floats, grid: Grid) -> tuple[Floats, Bytes]:
    """(d [B, 1], codes [B, E]) of the formats with one scale."""
    d_B = packing.rounded_half(signed(x_EB, w_EB, grid).T).T
    return np.ascontiguousarray(d_B.T), _codes(grid.codes(x_EB * inverse(d_B)))


def _scale_and_offset(x_EB: Floats, w_EB: Floats, levels: int) -> tuple[Floats, Floats, Bytes]:
    """(d, m [B, 1], codes [B, E]) of Q4_1 and Q5_1."""
    d_B, m_B = affine(x_EB, w_EB, levels, lowest_offset=None)
    d_B, m_B = packing.rounded_half(d_B.T).T, packing.rounded_half(m_B.T).T
    q_EB = np.clip(np.rint((x_EB - m_B) * inverse(d_B)), 0, levels)
    return np.ascontiguousarray(d_B.T), np.ascontiguousarray(m_B.T), _codes(q_EB)


@dataclass(slots=True)
class _Signed:
    """A block of the formats with signed integer scales: x is about d * s of its group * q."""

    x_GEB: Floats
    w_GEB: Floats
    grid: Grid
    low: int

    def fit(self) -> tuple[Floats, Floats, Bytes]:
        """(d [B, 1], s [B, G], codes [B, G * E])."""
        scale_GB = signed(self.x_GEB, self.w_GEB, self.grid)[:, 0]
        largest_B = np.take_along_axis(scale_GB, np.abs(scale_GB).argmax(axis=0, keepdims=True), axis=0)
        best = self._from(largest_B / np.float32(self.low), scale_GB)
        for _ in range(2):
            best = self._refit(self._moved(best))
        d_B, s_GB, _ = best
        codes = self.grid.codes(self.x_GEB * inverse(d_B * s_GB)[:, None])
        return np.ascontiguousarray(d_B.T), _rows(s_GB), _codes(codes)

    def _from(self, d_B: Floats, scale_GB: Floats) -> tuple[Floats, Floats, Floats]:
        d_B = packing.rounded_half(d_B.T).T
        s_GB = np.clip(np.rint(scale_GB * inverse(d_B)), self.low, -self.low - 1)
        return d_B, s_GB, self._error(d_B, s_GB)

    def _error(self, d_B: Floats, s_GB: Floats) -> Floats:
        return scaled_error(self.x_GEB, self.w_GEB, self.grid, (d_B * s_GB)[:, None])[:, 0]

    def _moved(self, best: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats, Floats]:
        """Each group's integer scale moved by one where that helps."""
        d_B, s_GB, error_GB = best
        for move in (-1, 1):
            tried_GB = np.clip(s_GB + move, self.low, -self.low - 1)
            tried_error_GB = self._error(d_B, tried_GB)
            better = tried_error_GB < error_GB
            s_GB, error_GB = np.where(better, tried_GB, s_GB), np.where(better, tried_error_GB, error_GB)
        return d_B, s_GB, error_GB

    def _refit(self, best: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats, Floats]:
        """The scale of scales by least squares for these integers, where that helps."""
        d_B, s_GB, error_GB = best
        sq_GEB = self.grid.values(self.x_GEB * inverse(d_B * s_GB)[:, None]) * s_GB[:, None]
        weighted = self.w_GEB * sq_GEB
        new_B = (weighted * self.x_GEB).sum(axis=(0, 1))[None] * inverse((weighted * sq_GEB).sum(axis=(0, 1))[None])
        new_B = packing.rounded_half(new_B.T).T
        new_GB = self._error(new_B, s_GB)
        better = new_GB.sum(axis=0) < error_GB.sum(axis=0)
        return np.where(better, new_B, d_B), s_GB, np.where(better, new_GB, error_GB)


_AffineState = tuple[Floats, Floats, Floats, Floats, Floats]


@dataclass(slots=True)
class _Affine:
    """A block of the formats with an integer scale and offset for each group: x is about d * s * q - dmin * m."""

    x_GEB: Floats
    w_GEB: Floats
    levels: int
    high: int

    def fit(self) -> tuple[Floats, Bytes, Floats, Bytes, Bytes]:
        """(d [B, 1], s [B, G], dmin [B, 1], m [B, G], codes [B, G * E])."""
        scale, offset = affine(self.x_GEB, self.w_GEB, self.levels, lowest_offset=0.0)
        scale_GB, offset_GB = scale[:, 0], -offset[:, 0]
        d_B, dmin_B = self._share(scale_GB), self._share(offset_GB)
        s_GB, m_GB = self._integers(scale_GB, d_B), self._integers(offset_GB, dmin_B)
        best: _AffineState = (d_B, s_GB, dmin_B, m_GB, self._error(d_B * s_GB, dmin_B * m_GB))
        for _ in range(2):
            best = self._refit(self._moved(best))
        d_B, s_GB, dmin_B, m_GB, _ = best
        codes = self._codes(d_B * s_GB, dmin_B * m_GB)
        return np.ascontiguousarray(d_B.T), _codes(s_GB), np.ascontiguousarray(dmin_B.T), _codes(m_GB), _codes(codes)

    def _share(self, values_GB: Floats) -> Floats:
        return packing.rounded_half((values_GB.max(axis=0, keepdims=True) / np.float32(self.high)).T).T

    def _integers(self, values_GB: Floats, d_B: Floats) -> Floats:
        integers: Floats = np.clip(np.rint(values_GB * inverse(d_B)), 0, self.high)
        return integers

    def _codes(self, scale_GB: Floats, offset_GB: Floats) -> Floats:
        q = self.x_GEB + offset_GB[:, None]
        q *= inverse(scale_GB)[:, None]
        np.rint(q, out=q)
        np.clip(q, 0, self.levels, out=q)
        return q

    def _error(self, scale_GB: Floats, offset_GB: Floats) -> Floats:
        off = self._codes(scale_GB, offset_GB)
        off *= scale_GB[:, None]
        off -= offset_GB[:, None]
        off -= self.x_GEB
        np.square(off, out=off)
        off *= self.w_GEB
        error: Floats = off.sum(axis=1)
        return error

    def _moved(self, best: _AffineState) -> _AffineState:
        """Each group's integers moved by one, one at a time, where that helps."""
        d_B, s_GB, dmin_B, m_GB, error_GB = best
        for scale_move, offset_move in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            tried_s = np.clip(s_GB + scale_move, 0, self.high)
            tried_m = np.clip(m_GB + offset_move, 0, self.high)
            tried = self._error(d_B * tried_s, dmin_B * tried_m)
            better = tried < error_GB
            s_GB, m_GB, error_GB = np.where(better, tried_s, s_GB), np.where(better, tried_m, m_GB), np.where(better, tried, error_GB)
        return d_B, s_GB, dmin_B, m_GB, error_GB

    def _refit(self, best: _AffineState) -> _AffineState:
        """d and dmin by least squares for these integers, where that helps."""
        d_B, s_GB, dmin_B, m_GB, error_GB = best
        p = self._codes(d_B * s_GB, dmin_B * m_GB) * s_GB[:, None]
        wp, wm = self.w_GEB * p, self.w_GEB * m_GB[:, None]
        pp, pm, mm = (self._total(each) for each in (wp * p, wp * m_GB[:, None], wm * m_GB[:, None]))
        xp, xm = self._total(wp * self.x_GEB), self._total(wm * self.x_GEB)
        one_over = inverse(pp * mm - pm * pm)
        new_d, new_dmin = (xp * mm - xm * pm) * one_over, (xp * pm - xm * pp) * one_over
        new_d, new_dmin = packing.rounded_half(new_d.T).T, packing.rounded_half(new_dmin.T).T
        tried = self._error(new_d * s_GB, new_dmin * m_GB)
        better = (tried.sum(axis=0) < error_GB.sum(axis=0)) & (new_d[0] >= 0) & (new_dmin[0] >= 0)
        return np.where(better, new_d, d_B), s_GB, np.where(better, new_dmin, dmin_B), m_GB, np.where(better, tried, error_GB)

    @staticmethod
    def _total(values_GEB: Floats) -> Floats:
        total: Floats = values_GEB.sum(axis=(0, 1))[None]
        return total


def _grouped(values_EB: Floats, size: int) -> Floats:
    return values_EB.reshape(-1, size, values_EB.shape[-1])


def _single(pack: Callable[..., Bytes], grid: Grid) -> Callable[[Floats, Floats], Bytes]:
    return lambda x, w: pack(*_one_scale(x, w, grid))


def _offset(pack: Callable[..., Bytes], levels: int) -> Callable[[Floats, Floats], Bytes]:
    return lambda x, w: pack(*_scale_and_offset(x, w, levels))


def _groups(pack: Callable[..., Bytes], size: int, grid: Grid, low: int) -> Callable[[Floats, Floats], Bytes]:
    return lambda x, w: pack(*_Signed(_grouped(x, size), _grouped(w, size), grid, low).fit())


def _pairs(pack: Callable[..., Bytes], size: int, levels: int, high: int) -> Callable[[Floats, Floats], Bytes]:
    return lambda x, w: pack(*_Affine(_grouped(x, size), _grouped(w, size), levels, high).fit())


def _pack_q8_0(d: Floats, q: Bytes) -> Bytes:
    return packing.pack_q8_0(d, (q.astype(np.int16) - 127).astype(np.int8))


_EVEN = {4: symmetric(-7, 7), 8: symmetric(-127, 127)}
_FITTED: dict[str, Callable[[Any, Any], Bytes]] = {
    "q4_0": _single(packing.pack_q4_0, symmetric(-8, 7)),
    "q4_1": _offset(packing.pack_q4_1, 15),
    "q5_0": _single(packing.pack_q5_0, symmetric(-16, 15)),
    "q5_1": _offset(packing.pack_q5_1, 31),
    "q8_0": _single(_pack_q8_0, symmetric(-127, 127)),
    "q2_k": _pairs(packing.pack_q2_k, 16, 3, 15),
    "q3_k": _groups(packing.pack_q3_k, 16, symmetric(-4, 3), -32),
    "q4_k": _pairs(packing.pack_q4_k, 32, 15, 63),
    "q5_k": _pairs(packing.pack_q5_k, 32, 31, 63),
    "q6_k": _groups(packing.pack_q6_k, 16, symmetric(-32, 31), -128),
    "iq4_nl": _single(packing.pack_q4_0, IQ4),
    "iq4_xs": _groups(packing.pack_iq4_xs, 32, IQ4, -32),
}
