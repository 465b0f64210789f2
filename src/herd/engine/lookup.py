"""Drafts from the text itself: what followed where the text was most like what it is now.

Prompts are quoted, code repeats its names, edits leave most of a text as it was: there an earlier place foretells what comes next
(prompt lookup). Likeness forgives single tokens that differ, and learns from them: where one function was written like another with
`country` in place of `city`, the next `city` of that other one foretells `country`. It costs microseconds, so every token of an answer
shows whether the draft would have been right, also while none is tried.
"""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Sequence as List
from operator import eq, mul

from herd.engine.request import Sequence
from herd.engine.speculative import SIZES, Rate

WINDOW, FADE = 32, 0.8
"""So many tokens are compared; each counts FADE times as much as the one after it."""

NEEDED = 0.2
"""Likeness of a place that foretells anything: that of one that ends with the same token."""

CANDIDATES = 8
"""The latest places where the last two tokens occurred, and the one after the place before."""

TOKENS_AT_ONCE = 4096
"""A long prompt is read over several steps."""

_WEIGHTS = [FADE ** (WINDOW - 1 - at) for at in range(WINDOW)]
_WHOLE = sum(_WEIGHTS)


class Likeness:
    """Finds the place in a growing list of tokens that is most like its end. Adding a token is O(1)."""

    def __init__(self, tokens: list[int]) -> None:
        """`tokens`: the list itself, which may grow; never changes otherwise."""
        self._tokens = tokens
        self._last: dict[tuple[int, ...], int] = {}
        self._before = array("i")  # for each end: where the same two tokens ended last; 0: nowhere
        self._place = 0  # of the token that followed; 0: nothing is foretold
        self._exchanged: dict[int, int] = {}
        self.num_read = 0
        self.degree = 0.0  # how like the text before that place is to the end, from 0 to 1

    @property
    def foretold(self) -> int | None:
        """The token that followed, or the one that now stands where it stood."""
        return self.continuation(1)[0] if self._place else None

    def read(self, stop: int) -> None:
        """Reads on up to `stop` tokens; then `degree` is that of the place which is most like that end."""
        followed = self._place + 1 if self._place and stop == self.num_read + 1 else 0
        for end in range(self.num_read + 1, stop + 1):
            key = tuple(self._tokens[max(0, end - 2) : end])
            self._before.append(self._last.get(key, 0))
            self._last[key] = end
        if stop > self.num_read:
            self.num_read = stop
            self._find(followed)

    def continuation(self, count: int) -> list[int]:
        """What followed, with tokens exchanged, and what follows that if the text goes on so; empty if nothing is foretold."""
        if not self._place:
            return []
        found = self._tokens[self._place : min(self._place + count, self.num_read)]
        period = self.num_read - self._place
        while len(found) < count:
            found.append(found[len(found) - period])
        return [self._exchanged.get(token, token) for token in found] if self._exchanged else found

    def _find(self, followed: int) -> None:
        end, places = self.num_read, [followed] if followed else []
        now = self._tokens[max(0, end - WINDOW) : end]
        place = self._before[end - 1] if end > 1 else 0
        while place and len(places) < CANDIDATES:
            if place != followed:
                places.append(place)
            place = self._before[place - 1]
        self.degree, self._place, self._exchanged = 0.0, 0, {}
        for place in places:
            if (degree := self._degree(place, now)) > max(self.degree, NEEDED):
                self.degree, self._place = degree, place
        if self._place:
            self._exchanged = self._exchanges()

    def _degree(self, place: int, now: list[int]) -> float:
        before = self._tokens[max(0, place - WINDOW) : place]
        missing = WINDOW - len(before)
        weights, now = (_WEIGHTS[missing:], now[missing - WINDOW :]) if missing else (_WEIGHTS, now)
        counted: float = sum(map(mul, weights, map(eq, before, now)))
        return counted / _WHOLE

    def _exchanges(self) -> dict[int, int]:
        """What stands now where another token stood, between tokens that are the same: the latest of each."""
        compared = min(WINDOW, self._place)
        before, now = self._tokens[self._place - compared : self._place], self._tokens[self.num_read - compared : self.num_read]
        same = [True, *map(eq, before, now), True]
        found: dict[int, int] = {}
        if all(same):
            return found
        for at, (old, new) in enumerate(zip(before, now, strict=True)):
            if old == new:
                found.pop(old, None)
            elif same[at] and same[at + 2]:
                found[old] = new
        return found


class _Reading:
    """What one sequence is like, and how often it was right there, by the degree of likeness."""

    def __init__(self, sequence: Sequence) -> None:
        self.like = Likeness(sequence.tokens)
        self.rates = [Rate(0.9, 0.5, 0.0001) for _ in _PRIOR]


_DEGREES = (0.3, 0.5, 0.7, 0.85, 0.95, 0.995)
_PRIOR = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 0.95)


class LookupDrafter:
    """Drafts what followed before. How often that is right is learned for each sequence, starting with how it was for all."""

    def __init__(self) -> None:
        self._rates = [Rate(0.99, chance, 8.0) for chance in _PRIOR]

    def chances(self, sequence: Sequence) -> List[float]:
        reading = self._read(sequence)
        like = reading.like
        if like.foretold is None or like.num_read < sequence.length:
            return ()
        found, degree = [], like.degree
        for _ in range(SIZES[-1]):
            kind = bisect(_DEGREES, degree)
            found.append(reading.rates[kind].chance(self._rates[kind].chance()))
            degree = FADE * degree + 1.0 - FADE  # if the text goes on so
        return found

    def draft(self, asked: List[tuple[Sequence, int]]) -> list[List[int]]:
        return [self._read(sequence).like.continuation(count) for sequence, count in asked]

    def learn(self, sequence: Sequence, drafted: List[int], chosen: List[int]) -> None:
        """Nothing: what the sequence now says is compared when it is read."""

    def close(self) -> None:
        self._rates = []

    def _read(self, sequence: Sequence) -> _Reading:
        reading = sequence.drafting
        if not isinstance(reading, _Reading):
            reading = sequence.drafting = _Reading(sequence)
        like, length = reading.like, sequence.length
        if length - like.num_read > SIZES[-1] + 1:
            like.read(min(length, like.num_read + TOKENS_AT_ONCE))
        while like.num_read < length <= like.num_read + SIZES[-1] + 1:
            foretold, kind = like.foretold, bisect(_DEGREES, like.degree)
            if foretold is not None:
                is_right = foretold == sequence.tokens[like.num_read]
                reading.rates[kind].observe(is_right)
                self._rates[kind].observe(is_right)
            like.read(like.num_read + 1)
        return reading
