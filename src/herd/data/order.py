"""In which order examples come: a pure function of a seed and a position, so that a run resumes by knowing how far it came.

    index_at(seed, count, position)      which of `count` examples comes at this position; epoch after epoch, each in an order of its own

The order of an epoch is a permutation by a Feistel network over the smallest even number of bits that holds `count`; numbers that
fall outside are sent through again until one is inside. No list is kept and nothing depends on what was asked before.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from herd.errors import UsageError

_ROUNDS = 6
_MASK = (1 << 64) - 1
_HELD_OUT = -1
"""The epoch whose order decides which examples are held out; no run comes to it."""


def index_at(seed: int, count: int, position: int) -> int:
    """The example at `position`, counted from 0 over all epochs."""
    assert count > 0 and position >= 0, "positions of something"
    epoch, offset = divmod(position, count)
    return permuted(offset, count, seed, epoch)


def indices(seed: int, count: int, start: int, stop: int) -> Iterator[int]:
    """The examples at the positions from `start` up to `stop`."""
    return (index_at(seed, count, position) for position in range(start, stop))


def permuted(offset: int, count: int, *key: int) -> int:
    """Where the permutation of [0, count) that belongs to `key` sends `offset`."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = _round_keys(key)
    while True:
        left, right = offset >> half, offset & mask
        for round_key in keys:
            left, right = right, left ^ (mixed(right ^ round_key) & mask)
        offset = left << half | right
        if offset < count:
            return offset


@lru_cache(64)
def _round_keys(key: tuple[int, ...]) -> tuple[int, ...]:
    begin = hashed(*key)
    return tuple(mixed(begin + number) for number in range(_ROUNDS))


def split(count: int, held_out: int | float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(indices to learn from, indices held out), both ascending. held_out: how many, or a share below 1 of all."""
    size = round(Fraction(held_out) * count) if isinstance(held_out, float) else held_out
    if not 0 <= size < max(count, 1) or (isinstance(held_out, float) and not 0 <= held_out < 1):
        raise UsageError(f"{held_out} of {count} examples are to be held out; at least one must be left to learn from.")
    out = {permuted(offset, count, seed, _HELD_OUT) for offset in range(size)}
    return tuple(index for index in range(count) if index not in out), tuple(sorted(out))


def hashed(*key: int) -> int:
    """64 bits that depend on every number of the key and on their order."""
    state = 0
    for number in key:
        state = mixed(state ^ mixed(number & _MASK) ^ (number >> 64 & _MASK))
    return state


def mixed(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): 64 bits to 64 bits, one to one."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
