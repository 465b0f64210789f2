"""Documents of unequal lengths into rows of a token budget, with little room left over.

An epoch's documents are taken in their order (`order.py`), a window at a time. In each window the longest go first, each into the
fullest row that still has room for it; then the rows of the window are put into an order of their own. So what a row holds is a
function of the lengths, the seed and the row's number, and examples that are learned together are not always of one length.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from herd.data.order import index_at, permuted
from herd.errors import UsageError

WINDOW = 1024
_ROWS = 2
"""Distinguishes the order of rows from that of examples."""


class Packing:
    """Rows without end, epoch after epoch. `row(n)` gives the indices of the documents in row n."""

    def __init__(self, lengths: Sequence[int], budget_tokens: int, seed: int, *, window: int = WINDOW) -> None:
        """lengths: tokens of each document. `UsageError` if there is none, or one that no row has room for."""
        if not lengths:
            raise UsageError("there are no examples to pack.")
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] > budget_tokens:
            raise UsageError(
                f"example {longest} has {lengths[longest]:,} tokens and a row {budget_tokens:,}; raise the row's budget, or limit lengths."
            )
        self.lengths = tuple(lengths)
        self.budget_tokens = budget_tokens
        self._seed, self._window = seed, window
        self._epochs: list[int] = [0]  # before which row each epoch begins
        self._kept: tuple[int, list[tuple[int, ...]]] | None = None

    def row(self, number: int) -> tuple[int, ...]:
        """The documents of a row, by their indices."""
        while number >= self._epochs[-1]:
            self._epochs.append(self._epochs[-1] + len(self.epoch(len(self._epochs) - 1)))
        epoch = next(at for at in range(len(self._epochs) - 1, -1, -1) if self._epochs[at] <= number)
        return self.epoch(epoch)[number - self._epochs[epoch]]

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """All rows of an epoch. Every document is in exactly one of them."""
        if self._kept is None or self._kept[0] != number:
            count, rows = len(self.lengths), []
            for begin in range(0, count, self._window):
                window = [index_at(self._seed, count, number * count + at) for at in range(begin, min(begin + self._window, count))]
                packed = packed_rows(window, self.lengths, self.budget_tokens)
                rows += [packed[permuted(at, len(packed), self._seed, number, begin, _ROWS)] for at in range(len(packed))]
            self._kept = number, rows
        return self._kept[1]

    @property
    def fill(self) -> float:
        """Which share of the budget the rows of the first epoch use."""
        return sum(self.lengths) / (len(self.epoch(0)) * self.budget_tokens)


def packed_rows(window: Sequence[int], lengths: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """These documents in rows: the longest first, each into the fullest row with room for it (best fit, decreasing)."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens that a row has left, the row), ascending
    for index in sorted(window, key=lambda each: -lengths[each]):
        at = bisect_left(room, (lengths[index], -1))
        if at == len(room):
            left, row = budget, len(rows)
            rows.append([])
        else:
            left, row = room.pop(at)
        rows[row].append(index)
        insort(room, (left - lengths[index], row))
    return [tuple(row) for row in rows]
