"""Drafts from a smaller model of the same vocabulary, which runs ahead of the large one.

It draws as the large model will: with the same settings and the random number of the same position, so that models that agree draw
the same. Its pages are its own. A conversation that goes on finds the tokens of its last turn there, as long as nobody needed them.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import field

from herd.backends.base import PAGE_TOKENS, Backend, Plan, Span
from herd.engine.forward import draw_after
from herd.engine.request import Sequence, Status
from herd.engine.speculative import SIZES, Rate
from herd.errors import HerdError
from herd.records import dataclass

CATCH_UP = 16
"""A sequence that is further behind catches up alone."""

HOPE = (0.8, 0.8)
PATIENCE = (64, 1024)
"""After so many steps without drafts, and more each time that it was in vain, two are tried as if they were likely to be right."""


@dataclass(slots=True, eq=False)
class _Follower:
    """What the draft model has computed of one sequence: these tokens are in these pages."""

    sequence: Sequence
    tokens: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    known: int = 0  # so many of them were compared with the sequence's
    rate: Rate = field(default_factory=lambda: Rate(0.9, 0.5, 0.0001))


class ModelDrafter:
    """Drafts with `backend`, which it owns, in `num_pages` pages. `release` is called at the end, after the backend was closed."""

    def __init__(self, backend: Backend, context_length: int, num_pages: int, release: Callable[[], None], *, chunk: int = 512) -> None:
        backend.allocate(num_pages)
        self._backend = backend
        self._context_length = min(context_length, num_pages * PAGE_TOKENS)
        self._chunk = chunk
        self._release = release
        self._free = list(range(num_pages))
        self._followers: dict[int, _Follower] = {}
        self._rate = Rate(0.99, 0.7, 8.0)
        self._waited, self._patience = 0, PATIENCE[0]
        self.problem: HerdError | None = None

    def chances(self, sequence: Sequence) -> List[float]:
        if self.problem is not None or sequence.pictures or sequence.length + SIZES[-1] > self._context_length:
            return ()
        self._waited += 1
        if self._waited > self._patience:
            return HOPE
        follower, chance = self._followers.get(sequence.number), self._rate.chance()
        return [chance if follower is None else follower.rate.chance(chance)] * SIZES[-1]

    def draft(self, asked: List[tuple[Sequence, int]]) -> list[List[int]]:
        """A draft model that fails drafts no more, and `problem` says why: no answer depends on it."""
        self._waited = 0
        drafted: list[list[int]] = [[] for _ in asked]
        try:
            together = [
                (follower, count, found) for (s, count), found in zip(asked, drafted, strict=True) if (follower := self._ready(s, count))
            ]
            while together := [(follower, count, found) for follower, count, found in together if len(found) < count]:
                self._step_together([(follower, found) for follower, _, found in together])
        except HerdError as problem:
            self.problem = problem
        return list(drafted)

    def learn(self, sequence: Sequence, drafted: List[int], chosen: List[int]) -> None:
        follower = self._followers.get(sequence.number)
        for ours, theirs in zip(drafted, chosen, strict=False):
            self._rate.observe(ours == theirs)
            if follower is not None:
                follower.rate.observe(ours == theirs)
            if ours != theirs:
                break
        is_vain = not drafted or drafted[0] != chosen[0]
        self._patience = min(2 * self._patience, PATIENCE[1]) if is_vain else PATIENCE[0]

    def close(self) -> None:
        self._followers.clear()
        self._backend.close()
        self._release()

    def _step_together(self, group: List[tuple[_Follower, list[int]]]) -> None:
        """One more drafted token for each."""
        for first in range(0, len(group), self._chunk // CATCH_UP):
            some = group[first : first + self._chunk // CATCH_UP]
            spans = []
            for follower, found in some:
                sequence, start = follower.sequence, len(follower.tokens)
                follower.tokens += [*sequence.tokens[start:], *found][max(0, start - sequence.length) :]
                draws = (draw_after(sequence, tuple(found)),)
                spans.append(Span(start, follower.tokens[start:], follower.pages, 1, draws))
            choices = self._backend.step(Plan(tuple(spans))).choices
            for (_, found), (choice,) in zip(some, choices, strict=True):
                found.append(choice.token)

    def _ready(self, sequence: Sequence, count: int) -> _Follower | None:
        """The sequence's follower with pages for `count` tokens more, at most CATCH_UP tokens behind; None if pages do not suffice."""
        follower = self._followers.get(sequence.number) or self._follow(sequence)
        tokens, last = follower.tokens, sequence.length - 1
        same = follower.known
        while same < min(len(tokens), last) and tokens[same] == sequence.tokens[same]:
            same += 1
        del tokens[same:]
        follower.known = same
        while len(follower.pages) * PAGE_TOKENS < sequence.length + count:
            if not self._free and not self._make_free(follower):
                return None
            follower.pages.append(self._free.pop())
        while last - len(tokens) >= CATCH_UP:
            start = len(tokens)
            piece = sequence.tokens[start : min(start + self._chunk, last)]
            self._backend.step(Plan((Span(start, piece, follower.pages),)))
            tokens += piece
        return follower

    def _follow(self, sequence: Sequence) -> _Follower:
        """A new follower, which takes over what was computed of the ended sequence that began most alike."""
        best, most = None, 0
        for follower in self._followers.values():
            if follower.sequence.status is Status.GONE and follower.sequence.salt == sequence.salt:
                same = next(
                    (i for i, (a, b) in enumerate(zip(follower.tokens, sequence.tokens, strict=False)) if a != b), len(follower.tokens)
                )
                if same > most:
                    best, most = follower, same
        made = _Follower(sequence)
        if best is not None:
            del self._followers[best.sequence.number]
            made.tokens, made.pages = best.tokens[:most], best.pages
        self._followers[sequence.number] = made
        return made

    def _make_free(self, asking: _Follower) -> bool:
        """Takes the pages of somebody else: of one that has ended, else of the youngest."""
        others = [each for each in self._followers.values() if each is not asking and each.pages]
        if not others:
            return False
        victim = next((each for each in others if each.sequence.status is Status.GONE), others[-1])
        if victim.sequence.status is not Status.GONE and victim.sequence.number < asking.sequence.number:
            return False
        del self._followers[victim.sequence.number]
        self._free += victim.pages
        return True
