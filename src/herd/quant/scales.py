"""The scale, or scale and offset, of smallest weighted error for many small groups at once.

x and w are [..., elements, blocks]; what is found is [..., 1, blocks].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from herd.quant.grids import Grid

Floats = NDArray[np.float32]

# Candidates of the affine search: how many more steps than there are the range of a group is divided into.
_STEPS = {
    3: (-0.7, -0.5, -0.3, -0.15, 0.0, 0.2, 0.4, 0.7),
    15: (-1.2, -0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 1.0),
    31: (-1.2, -0.6, 0.0, 0.5, 1.0),
}
_ROUNDS = 2


def inverse(d: Floats) -> Floats:
    """1 / d, and 0 where d is 0 or too small to have an inverse."""
    with np.errstate(all="ignore"):
        found = np.float32(1) / d
    return np.where(np.isfinite(found), found, np.float32(0))


def _sum(values: Floats) -> Floats:
    total: Floats = values.sum(axis=-2, keepdims=True)
    return total


def signed(x: Floats, w: Floats, grid: Grid) -> Floats:
    """The scale d, of either sign, for which d * (nearest value of x / d) is closest to x."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=-2, keepdims=True), axis=-2)
    one_over_largest, wx = inverse(largest), w * x
    best, best_gain = np.zeros_like(largest), np.zeros_like(largest)
    for end in grid.ends:
        best, best_gain = _better(best, best_gain, *_least_squares(x * (np.float32(end) * one_over_largest), w, wx, grid))
    return refined(x, w, grid, best, best_gain)


def refined(x: Floats, w: Floats, grid: Grid, d: Floats, gain: Floats) -> Floats:
    """d, refined in turns: integers for the scale, the scale for the integers."""
    wx = w * x
    for _ in range(_ROUNDS):
        d, gain = _better(d, gain, *_least_squares(x * inverse(d), w, wx, grid))
    return d


def _least_squares(scaled: Floats, w: Floats, wx: Floats, grid: Grid) -> tuple[Floats, Floats]:
    """(scale, by how much it lowers the error) for the integers nearest to `scaled`."""
    q = grid.values(scaled)
    dot = _sum(wx * q)
    np.square(q, out=q)
    q *= w
    scale = dot * inverse(_sum(q))
    return scale, dot * scale


def _better(best: Floats, best_gain: Floats, found: Floats, gain: Floats) -> tuple[Floats, Floats]:
    better = gain > best_gain
    return np.where(better, found, best), np.where(better, gain, best_gain)


def scaled_error(x: Floats, w: Floats, grid: Grid, d: Floats) -> Floats:
    """Weighted error of x stored with the scale d."""
    off = grid.values(x * inverse(d))
    off *= d
    off -= x
    np.square(off, out=off)
    off *= w
    return _sum(off)


def affine(x: Floats, w: Floats, levels: int, lowest_offset: float | None) -> tuple[Floats, Floats]:
    """(d, m), d not negative, for which d * q + m is closest to x, q from 0 to `levels`. With `lowest_offset` 0: m is not positive."""
    low = x.min(axis=-2, keepdims=True)
    if lowest_offset is not None:
        low = np.minimum(low, np.float32(lowest_offset))
    span = x.max(axis=-2, keepdims=True) - low
    one_over_span, wx = inverse(span), w * x
    sum_w, sum_x = _sum(w), _sum(wx)
    bounded = lowest_offset is not None
    d, m = np.maximum(span, 0) / np.float32(levels), low
    gain = _gain_of(x, w, wx, (d, m), levels)
    for step in _STEPS[levels]:
        q = (x - low) * (np.float32(levels + step) * one_over_span)
        d, m, gain = _chosen(d, m, gain, _line(q, (w, wx, sum_w, sum_x), levels, bounded))
    for _ in range(_ROUNDS):
        q = (x - m) * inverse(d)
        d, m, gain = _chosen(d, m, gain, _line(q, (w, wx, sum_w, sum_x), levels, bounded))
    return d, m


def _chosen(d: Floats, m: Floats, gain: Floats, found: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats, Floats]:
    better = found[2] > gain
    return np.where(better, found[0], d), np.where(better, found[1], m), np.where(better, found[2], gain)


def _gain_of(x: Floats, w: Floats, wx: Floats, line: tuple[Floats, Floats], levels: int) -> Floats:
    """By how much a line lowers the sum of w x^2: sum of w y (2 x - y)."""
    d, m = line
    y = np.clip(np.rint((x - m) * inverse(d)), 0, levels) * d + m
    return _sum(y * (2 * wx - w * y))


def _line(q: Floats, sums: tuple[Floats, Floats, Floats, Floats], levels: int, bounded: bool) -> tuple[Floats, Floats, Floats]:
    """(d, m, gain) by least squares for the integers nearest to q, which is overwritten. `bounded`: m is not positive."""
    w, wx, sum_w, sum_x = sums
    np.rint(q, out=q)
    np.clip(q, 0, levels, out=q)
    sum_xq = _sum(wx * q)
    wq = w * q
    sum_q = _sum(wq)
    wq *= q
    sum_qq = _sum(wq)
    d = (sum_w * sum_xq - sum_x * sum_q) * inverse(sum_w * sum_qq - sum_q * sum_q)
    m = (sum_x - d * sum_q) * inverse(sum_w)
    if bounded:
        through_zero = m > 0
        d, m = np.where(through_zero, sum_xq * inverse(sum_qq), d), np.where(through_zero, np.float32(0), m)
    gain = d * sum_xq + m * sum_x
    return d, m, np.where(d >= 0, gain, np.float32(-1))
