"""Which tokens a sequence has seen so far, for the penalties. Kept only for sequences that have any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FIRST_CAPACITY = 256


class History:
    """The distinct tokens of prompt and answer, each with how often it occurs in the answer. Adding is O(1)."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._where: dict[int, int] = {}
        self._ids = np.zeros(_FIRST_CAPACITY, np.int32)
        self._counts = np.zeros(_FIRST_CAPACITY, np.int32)
        for token in prompt:
            self._index(token)

    def add(self, token: int) -> None:
        """One more token of the answer."""
        index = self._index(token)  # may replace the arrays
        self._counts[index] += 1

    @property
    def ids(self) -> NDArray[np.int32]:
        """Distinct token ids [n], a view that is valid until the next `add`."""
        return self._ids[: len(self._where)]

    @property
    def counts(self) -> NDArray[np.int32]:
        """How often each of `ids` occurs in the answer [n]; 0 for those that only the prompt has."""
        return self._counts[: len(self._where)]

    def after(self, tokens: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """`ids` and `counts` as they were if the answer went on with `tokens`: copies, at O(n). Nothing is added."""
        known, places = len(self._where), dict[int, int]()
        for token in tokens:
            if token not in self._where:
                places.setdefault(token, known + len(places))
        ids = np.concatenate([self.ids, np.fromiter(places, np.int32, len(places))])
        counts = np.concatenate([self.counts, np.zeros(len(places), np.int32)])
        for token in tokens:
            counts[self._where[token] if token in self._where else places[token]] += 1
        return ids, counts

    def _index(self, token: int) -> int:
        index = self._where.setdefault(token, len(self._where))
        if index == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[index] = token
        return index
