"""The values that a format can give an element of a block, before its scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.quant.reading import IQ4_VALUES

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grid:
    """`values(scaled)`: the nearest value of the grid; `codes(scaled)`: its number, from 0 up; both float32.

    ends    scaled values at which candidates put the element of largest magnitude
    """

    values: Callable[[Floats], Floats]
    codes: Callable[[Floats], Floats]
    ends: tuple[float, ...]


def symmetric(low: int, high: int) -> Grid:
    """Whole numbers from `low` to `high`."""

    def values(scaled: Floats) -> Floats:
        q = np.rint(scaled)
        return np.clip(q, low, high, out=q)

    def codes(scaled: Floats) -> Floats:
        return values(scaled) - np.float32(low)

    return Grid(values, codes, _ends(low, high))


def _ends(low: int, high: int) -> tuple[float, ...]:
    """Near both ends: a little beyond, so that the largest element is cut, and well inside, so that small ones fall better."""
    if high >= 32:
        return tuple(float(end) * share for end in (low, high) for share in (0.97, 0.985, 0.995, 1.0, 1.01))
    steps = np.linspace(-1.4, 1.4, 14) if high <= 3 else np.linspace(-1.6, 1.2, 8)
    return tuple(float(end + sign * step) for end, sign in ((low, -1), (high, 1)) for step in steps)


# Where the nearest value changes: between neighbours, and these middles are all multiples of a half.
_SHIFT = 256
_CODES = np.searchsorted((IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2, (np.arange(2 * _SHIFT) - _SHIFT + 0.5) / 2).astype(np.float32)
_NEAREST = IQ4_VALUES[_CODES.astype(np.intp)]


def _places(scaled: Floats) -> NDArray[np.intp]:
    doubled = scaled * np.float32(2)
    doubled += np.float32(_SHIFT)
    np.clip(doubled, 0, 2 * _SHIFT - 1, out=doubled)
    return doubled.astype(np.intp)


IQ4 = Grid(
    values=lambda scaled: _NEAREST[_places(scaled)],
    codes=lambda scaled: _CODES[_places(scaled)],
    ends=tuple(float(end) * share for end in (-127, 113) for share in (0.82, 0.88, 0.92, 0.96, 1.0, 1.04, 1.1)),
)
