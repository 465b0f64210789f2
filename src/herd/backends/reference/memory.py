"""What the tokens of a step see of pictures: what replaces picture tokens, and what layers cross over to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import Encoded, Plan, pictures_seen
from herd.backends.reference.arrays import Floats
from herd.backends.reference.integer_cache import FORMATS, IntegerRows, rounded

Piece = tuple[NDArray[np.int64], Floats | list[IntegerRows], Floats | list[IntegerRows]]


@dataclass(frozen=True, slots=True)
class Memory:
    """For one crossing layer: groups of rows of the step that see the same pictures, with those pictures' keys and values
    [I, K, H], or as integers a list of each picture's. A row in no group sees none."""

    pieces: tuple[Piece, ...]


def overlays(plan: Plan, encoded: Encoded) -> tuple[NDArray[np.int64], Floats] | None:
    """Rows of the step that are picture tokens, and what replaces them [rows, D] (early fusion)."""
    rows: list[NDArray[np.int64]] = []
    features: list[Floats] = []
    encoded.begin_step()
    first = 0
    for span in plan.spans:
        for placed in span.pictures:
            at = np.asarray(placed.positions) - span.start
            inside = (at >= 0) & (at < len(span.tokens))
            if inside.any():
                rows.append(first + at[inside])
                features.append(encoded.get(placed.picture)[0][inside])
        first += len(span.tokens)
    return (np.concatenate(rows), np.concatenate(features)) if rows else None


def memories(plan: Plan, encoded: Encoded, num_layers: int, form: str) -> tuple[list[Memory], NDArray[np.bool_]]:
    """For each crossing layer what the rows of the step see, and which rows see anything. `encode` gives keys and values of
    layer 0, of layer 1, ...; `form` is how the cache keeps those of tokens."""
    groups: list[tuple[NDArray[np.int64], list[Sequence[Floats]]]] = []
    seen = np.zeros(plan.num_tokens, bool)
    encoded.begin_step()
    first = 0
    for span in plan.spans:
        for begin, end, pictures in pictures_seen(span.pictures, span.start + len(span.tokens)):
            rows = np.arange(max(begin, span.start), end) - span.start + first
            if len(rows):
                groups.append((rows, [encoded.get(picture) for picture in pictures]))
                seen[rows] = True
        first += len(span.tokens)
    return [Memory(tuple(_piece(rows, tensors, layer, form) for rows, tensors in groups)) for layer in range(num_layers)], seen


def _piece(rows: NDArray[np.int64], tensors: list[Sequence[Floats]], layer: int, form: str) -> Piece:
    if form in FORMATS:
        return rows, [rounded(each[2 * layer], form) for each in tensors], [rounded(each[2 * layer + 1], form) for each in tensors]
    if len(tensors) == 1:
        return rows, tensors[0][2 * layer], tensors[0][2 * layer + 1]
    keys, values = (np.concatenate([each[2 * layer + which] for each in tensors]) for which in (0, 1))
    return rows, keys, values
