"""What the tokens of a step see of pictures: encoded once per picture, kept for a few, handed to each layer that crosses over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import Picture, Plan, pictures_seen
from herd.backends.reference.arrays import Floats

KEPT_PICTURES = 8


@dataclass(frozen=True, slots=True)
class Memory:
    """For one crossing layer: groups of rows of the step that see the same pictures, with those pictures' keys and values
    [I, K, H]. A row in no group sees none."""

    pieces: tuple[tuple[NDArray[np.int64], Floats, Floats], ...]


class Encoded:
    """The tensors that `encode` gave for the pictures seen last."""

    def __init__(self, encode: Callable[[Picture], Sequence[Floats]], kept: int = KEPT_PICTURES) -> None:
        self._encode = encode
        self._kept = kept
        self._of: OrderedDict[bytes, Sequence[Floats]] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self._of.values() for tensor in tensors)

    def get(self, picture: Picture) -> Sequence[Floats]:
        """Encodes the picture unless it is one of the last few."""
        found = self._of.pop(picture.digest, None)
        self._of[picture.digest] = made = self._encode(picture) if found is None else found
        while len(self._of) > self._kept:
            self._of.popitem(last=False)
        return made

    def hold(self, count: int) -> None:
        """From now on keeps `count` pictures, and never fewer than at first: a step must not drop what the next one needs."""
        self._kept = max(count, KEPT_PICTURES)

    def clear(self) -> None:
        self._of.clear()


def overlays(plan: Plan, encoded: Encoded) -> tuple[NDArray[np.int64], Floats] | None:
    """Rows of the step that are placeholders of pictures, and what replaces them [rows, D] (early fusion)."""
    rows: list[NDArray[np.int64]] = []
    features: list[Floats] = []
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


def memories(plan: Plan, encoded: Encoded, num_layers: int) -> tuple[list[Memory], NDArray[np.bool_]]:
    """For each crossing layer what the rows of the step see, and which rows see anything. `encode` gives keys and values of
    layer 0, of layer 1, ..."""
    groups: list[tuple[NDArray[np.int64], list[Sequence[Floats]]]] = []
    seen = np.zeros(plan.num_tokens, bool)
    first = 0
    for span in plan.spans:
        for begin, end, pictures in pictures_seen(span.pictures, span.start + len(span.tokens)):
            rows = np.arange(max(begin, span.start), end) - span.start + first
            if len(rows):
                groups.append((rows, [encoded.get(picture) for picture in pictures]))
                seen[rows] = True
        first += len(span.tokens)
    return [Memory(tuple(_piece(rows, tensors, layer) for rows, tensors in groups)) for layer in range(num_layers)], seen


def _piece(rows: NDArray[np.int64], tensors: list[Sequence[Floats]], layer: int) -> tuple[NDArray[np.int64], Floats, Floats]:
    if len(tensors) == 1:
        return rows, tensors[0][2 * layer], tensors[0][2 * layer + 1]
    keys, values = (np.concatenate([each[2 * layer + which] for each in tensors]) for which in (0, 1))
    return rows, keys, values
