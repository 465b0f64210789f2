"""Drafts from the text itself: what followed the last time that the text stood as it stands now.

Prompts are quoted, code repeats its names, edits leave most of a text as it was: there the longest end of the text that occurred
before foretells what comes next (prompt lookup). It costs microseconds, so every token of an answer shows whether the draft would
have been right, also while none is tried.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as List

from herd.engine.request import Sequence
from herd.engine.speculative import SIZES, Rate

SHORTEST = 2
CANDIDATES = 8
LONGEST = 64
"""Ends of at least SHORTEST tokens are looked for, at the latest CANDIDATES places where the last SHORTEST tokens occurred, and are
compared up to LONGEST tokens."""

RESUMED = 4
"""A text that went on as before for so many tokens may do so again after one other token."""

TOKENS_AT_ONCE = 4096
"""A long prompt is read over several steps."""


class SuffixIndex:
    """Finds the longest end of a growing list of tokens that occurred before. Adding a token is O(1)."""

    def __init__(self, tokens: list[int]) -> None:
        """`tokens`: the list itself, which may grow; never changes otherwise."""
        self._tokens = tokens
        self._last: dict[tuple[int, ...], int] = {}
        self._before = array("i")  # for each end: where the same SHORTEST tokens ended last; 0: nowhere
        self.num_read = 0
        self.length = 0  # of the end that occurred before; may be 0 after a single token that was another
        self._next = 0  # what followed it there; 0: nothing is foretold

    @property
    def foretold(self) -> int | None:
        """The token that followed the longest end."""
        return self._tokens[self._next] if self._next else None

    def read(self, stop: int) -> None:
        """Reads on up to `stop` tokens; then `length` is that of the longest end found before."""
        first = self.num_read
        for end in range(first + 1, stop + 1):
            key = tuple(self._tokens[max(0, end - SHORTEST) : end])
            self._before.append(self._last.get(key, 0))
            if end == stop:
                self._match(end)
            self._last[key] = end
        self.num_read = max(first, stop)

    def continuation(self, count: int) -> list[int]:
        """What followed, and what follows that if the text goes on so; empty if no end was found before."""
        if not self._next:
            return []
        found = self._tokens[self._next : min(self._next + count, self.num_read)]
        period = self.num_read - self._next
        while len(found) < count:
            found.append(found[len(found) - period])
        return found

    def _match(self, end: int) -> None:
        """Where the text up to `end` went on as foretold, the longest end has become one longer; else it is looked for."""
        followed, length = self._next if end == self.num_read + 1 else 0, self.length
        is_right = followed > 0 and self._tokens[followed] == self._tokens[end - 1]
        if is_right and length >= SHORTEST:
            self._next, self.length = followed + 1, length + 1
            return
        self.length, self._next = self._search(end)
        if is_right and length + 1 > self.length:
            self._next, self.length = followed + 1, length + 1
        elif followed and not self._next and length >= RESUMED:
            self._next = followed + 1

    def _search(self, end: int) -> tuple[int, int]:
        """(length of the longest end that occurred before, where that occurrence ends), or (0, 0)."""
        tokens, longest, found = self._tokens, 0, 0
        place = self._before[end - 1] if end >= SHORTEST else 0
        for _ in range(CANDIDATES):
            if not place or longest >= LONGEST:
                break
            same = SHORTEST
            while same < min(LONGEST, place) and tokens[place - 1 - same] == tokens[end - 1 - same]:
                same += 1
            if same > longest:
                longest, found = same, place
            place = self._before[place - 1]
        return longest, found


class _Reading:
    """The index of one sequence, and how often it was right there, by the length of the end: up to 1, 3, 7, 15, 31, and more."""

    def __init__(self, sequence: Sequence) -> None:
        self.index = SuffixIndex(sequence.tokens)
        self.rates = [Rate(0.9, 0.5, 0.0001) for _ in _PRIOR]


_PRIOR = (0.5, 0.35, 0.5, 0.65, 0.8, 0.9)


class LookupDrafter:
    """Drafts what followed before. How often that is right is learned for each sequence, starting with how it was for all."""

    def __init__(self) -> None:
        self._rates = [Rate(0.99, chance, 8.0) for chance in _PRIOR]

    def chances(self, sequence: Sequence) -> List[float]:
        reading = self._read(sequence)
        index = reading.index
        if index.foretold is None or index.num_read < sequence.length:
            return ()
        first, last = _kind(index.length), _kind(index.length + SIZES[-1] - 1)
        each = [reading.rates[kind].chance(self._rates[kind].chance()) for kind in range(first, last + 1)]
        return [each[_kind(index.length + depth) - first] for depth in range(SIZES[-1])] if first != last else each * SIZES[-1]

    def draft(self, asked: List[tuple[Sequence, int]]) -> list[List[int]]:
        return [self._read(sequence).index.continuation(count) for sequence, count in asked]

    def learn(self, sequence: Sequence, drafted: List[int], chosen: List[int]) -> None:
        """Nothing: what the sequence now says is compared when it is read."""

    def close(self) -> None:
        self._rates = []

    def _read(self, sequence: Sequence) -> _Reading:
        reading = sequence.drafting
        if not isinstance(reading, _Reading):
            reading = sequence.drafting = _Reading(sequence)
        index, length = reading.index, sequence.length
        if length - index.num_read > SIZES[-1] + 1:
            index.read(min(length, index.num_read + TOKENS_AT_ONCE))
        while index.num_read < length <= index.num_read + SIZES[-1] + 1:
            foretold, kind = index.foretold, _kind(index.length)
            if foretold is not None:
                is_right = foretold == sequence.tokens[index.num_read]
                reading.rates[kind].observe(is_right)
                self._rates[kind].observe(is_right)
            index.read(index.num_read + 1)
        return reading


def _kind(length: int) -> int:
    return min(max(length.bit_length() - 1, 0), len(_PRIOR) - 1)
