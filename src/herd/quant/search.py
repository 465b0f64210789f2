"""Scales for a few values at a time, by least squares: what the K formats and IQ4 need and their layout does not prescribe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# How far from the plain scale candidates reach, in steps of the integers, and how finely.
_REACH = np.arange(-9, 10, dtype=np.float32) * np.float32(0.1)


def inverse(d: Floats) -> Floats:
    """1 / d, and 0 where d is 0 or too small to have an inverse."""
    with np.errstate(all="ignore"):
        found = np.float32(1) / d
    return np.where(np.isfinite(found), found, np.float32(0))


def fit_scale(x: Floats, nearest: Callable[[Floats], Floats], ends: tuple[float, ...]) -> Floats:
    """The scale d [..., 1] for which d * nearest(x / d) is closest to x [..., elements] among the candidates.

    Candidates put the element of largest magnitude near one of the format's `ends`; each is then refined by least squares.
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=-1, keepdims=True), axis=-1)
    one_over_largest = inverse(largest)
    best = np.zeros_like(largest)
    best_gain = np.full_like(largest, -1)
    for end in ends:
        for shift in _REACH:
            q = nearest(x * ((np.float32(end) + shift) * one_over_largest))
            dot, square = (x * q).sum(axis=-1, keepdims=True), (q * q).sum(axis=-1, keepdims=True)
            scale = dot * inverse(square)
            gain = dot * scale
            better = gain > best_gain
            best_gain = np.where(better, gain, best_gain)
            best = np.where(better, scale, best)
    return best


def fit_affine(x: Floats, levels: int) -> tuple[Floats, Floats]:
    """(scale, offset), both [..., 1] and not negative, for which scale * q - offset is closest to x, q from 0 to `levels`."""
    low = np.minimum(x.min(axis=-1, keepdims=True), 0)
    spread = x.max(axis=-1, keepdims=True) - low
    one_over_spread = inverse(spread)
    count = np.float32(x.shape[-1])
    sum_x = x.sum(axis=-1, keepdims=True)
    best_scale, best_offset = np.maximum(spread, 0) / levels, -low
    best_error = _error(x, best_scale, best_offset, levels)
    for shift in _REACH:
        q = np.clip(np.rint((x - low) * ((levels + shift) * one_over_spread)), 0, levels)
        sum_q, sum_qq, dot = q.sum(axis=-1, keepdims=True), (q * q).sum(axis=-1, keepdims=True), (x * q).sum(axis=-1, keepdims=True)
        scale = (count * dot - sum_x * sum_q) * inverse(count * sum_qq - sum_q * sum_q)
        offset = (scale * sum_q - sum_x) / count
        # An offset below zero cannot be stored: the line then goes through zero.
        scale = np.maximum(np.where(offset < 0, dot * inverse(sum_qq), scale), 0)
        offset = np.maximum(offset, 0)
        error = _error(x, scale, offset, levels)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale, best_offset = np.where(better, scale, best_scale), np.where(better, offset, best_offset)
    return best_scale, best_offset


def _error(x: Floats, scale: Floats, offset: Floats, levels: int) -> Floats:
    q = np.clip(np.rint((x + offset) * inverse(scale)), 0, levels)
    error: Floats = np.square(scale * q - offset - x).sum(axis=-1, keepdims=True)
    return error
