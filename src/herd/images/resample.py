"""Resizing as torch does it for 8-bit pictures, in numpy: antialiased, first across, then down, each to 8 bits again.

Every output pixel is a weighted sum of the input pixels under a filter as wide as the step between output pixels; the
weights are whole numbers of 15 bits and the sums exact, so the result equals torch's `interpolate(antialias=True)` bit for bit.
Pillow's resizing is the same method with weights of 22 bits; the two differ by one level in about one pixel of a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_BLOCK_BYTES = 1 << 20
_MAX_WEIGHT, _MAX_PRECISION = 1 << 15, 22

Filter = tuple[Callable[[float], float], int]
"""The weight at a distance, and the distance from which it is zero."""


def _triangle(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(math.pi * x) / (math.pi * x)


def _windowed_sinc(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


BILINEAR: Filter = (_triangle, 1)
LANCZOS: Filter = (_windowed_sinc, 3)


def resize(pixels: NDArray[np.uint8], width: int, height: int, kind: Filter = BILINEAR) -> NDArray[np.uint8]:
    """pixels [height, width, channels] -> the same picture as [height, width, channels] of the given size."""
    if pixels.shape[1] != width:
        pixels = _along_rows(pixels.transpose(1, 0, 2), width, kind).transpose(1, 0, 2)
    if pixels.shape[0] != height:
        pixels = _along_rows(pixels, height, kind)
    return np.ascontiguousarray(pixels)


def _along_rows(pixels: NDArray[np.uint8], size: int, kind: Filter) -> NDArray[np.uint8]:
    """[n, m, channels] -> [size, m, channels]: the first axis resized."""
    first, weights, precision = _weights(pixels.shape[0], size, kind)
    rows = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1)
    result = np.empty((size, rows.shape[1]), np.uint8)
    block = max(1, _BLOCK_BYTES // max(1, 4 * rows.shape[1]))
    for start in range(0, size, block):
        part = slice(start, start + block)
        total = np.full((len(first[part]), rows.shape[1]), 1 << precision >> 1, np.int32)
        for tap in range(weights.shape[1]):
            # a tap outside of the picture has weight zero, so any row will do for it
            near = np.minimum(first[part] + tap, rows.shape[0] - 1)
            total += rows[near] * weights[part, tap, None]
        result[part] = np.clip(total >> precision, 0, 255)
    return result.reshape(size, *pixels.shape[1:])


def _weights(old: int, new: int, kind: Filter) -> tuple[NDArray[np.intp], NDArray[np.int32], int]:
    """For each of `new` pixels the first of the `old` ones it is made of and their weights [new, taps], in units of 2^-precision."""
    weight_at, reach = kind
    scale = old / new
    support = reach * max(scale, 1.0)
    taps = math.ceil(support) * 2 + 1
    first = np.zeros(new, np.intp)
    weights = np.zeros((new, taps))
    for index in range(new):
        centre = scale * (index + 0.5)
        start = max(int(centre - support + 0.5), 0)
        count = min(max(min(int(centre + support + 0.5), old) - start, 0), taps)
        values = [weight_at((start + k - centre + 0.5) / max(scale, 1.0)) for k in range(count)]
        total = sum(values)
        first[index] = start
        weights[index, :count] = [value / total for value in values] if total else values
    precision = 0
    while precision < _MAX_PRECISION and int(0.5 + float(weights.max()) * (1 << precision + 1)) < _MAX_WEIGHT:
        precision += 1
    scaled = weights * (1 << precision)
    return first, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32), precision
