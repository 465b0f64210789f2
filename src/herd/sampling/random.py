"""Random numbers that are a function of a counter, so that a choice does not depend on what was drawn before or beside it.

The generator is Philox 4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011):
a bijection of 128 bits under a key of 64. `csrc/kernels/sample.cpp` computes the same.
"""

from __future__ import annotations

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF

Words = tuple[int, int, int, int]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four 32-bit words for a counter of four and a key of two."""
    first, second, third, fourth = counter
    low_key, high_key = key
    for _ in range(_ROUNDS):
        low_product = first * _MULTIPLIERS[0]
        high_product = third * _MULTIPLIERS[1]
        first, second, third, fourth = (
            (high_product >> 32) ^ second ^ low_key,
            high_product & _MASK,
            (low_product >> 32) ^ fourth ^ high_key,
            low_product & _MASK,
        )
        low_key = (low_key + _KEY_STEPS[0]) & _MASK
        high_key = (high_key + _KEY_STEPS[1]) & _MASK
    return first, second, third, fourth


def uniform(seed: int, choice_index: int, position: int) -> float:
    """The number in [0, 1), a multiple of 2^-53, that decides the token at `position` of choice `choice_index`.

    The seed (64 bits) is the key; the counter is (position, choice_index, 0, 0), each below 2^32.
    """
    first, second, _, _ = philox((position & _MASK, choice_index & _MASK, 0, 0), (seed & _MASK, (seed >> 32) & _MASK))
    return float(((first >> 5) << 26) | (second >> 6)) * 2.0**-53
