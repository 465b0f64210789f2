"""Lossless speculation: a step tries a few tokens that were guessed, and computes several tokens of an answer at once.

    wanted (how many) -> pages for them (scheduler) -> draft -> one forward over pending token and drafts -> accepted (`forward`)

Nothing of an answer changes. After every drafted token the model draws its own, with the random number of that position and the
history as it would be then; a choice counts as long as all drafts before it were what the model itself had drawn. A backend whose
bits do not depend on what else is in a step gives the same answer with and without, log-probabilities included, drawn or not.

How many are tried is decided anew for each step: so many as promise the most tokens per second, from the measured seconds of steps
and from how often drafts were right lately. It is none while that does not pay.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from dataclasses import replace
from itertools import accumulate
from operator import mul
from typing import Protocol

from herd.engine.constrained import with_masks
from herd.engine.forward import Outcome, Steps, forward
from herd.engine.parts import Part
from herd.engine.request import Sequence

SIZES = (1, 2, 3, 7)
"""How many tokens may be tried. Kernels compute four tokens of a step at a time; a group of four that is begun costs nearly a whole one."""
MARGIN = 1.02
"""Drafts have to promise so much more than a step without them."""


class Drafter(Protocol):
    """Guesses how sequences go on."""

    def chances(self, sequence: Sequence) -> List[float]:
        """For the next tokens, up to `SIZES[-1]`: how likely each draft is right if those before it are. Empty if there are none."""

    def draft(self, asked: List[tuple[Sequence, int]]) -> list[List[int]]:
        """Up to so many tokens for each sequence. Called outside the engine's lock, by one thread at a time."""

    def learn(self, sequence: Sequence, drafted: List[int], chosen: List[int]) -> None:
        """What the model chose where these were tried; after a wrong one nothing is known."""

    def close(self) -> None:
        """Gives everything back."""


class Speculation:
    """Decides how many tokens are tried, has them drafted, and measures. For one engine. `clock` gives seconds that only grow."""

    def __init__(self, drafter: Drafter, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._drafter = drafter
        self._clock = clock
        self._step_costs = StepCosts()
        self._draft_seconds: deque[float] = deque(maxlen=StepCosts.KEPT)
        self._undrafted = 0  # steps since the last drafts
        self.num_drafted = 0
        self.num_right = 0

    def wanted(self, parts: List[Part]) -> list[int]:
        """How many tokens to try for each part of a step. None beside prompts, which fill a step by themselves."""
        if not all(part.is_decoding for part in parts):
            return [0] * len(parts)
        chances = [self._drafter.chances(part.sequence) for part in parts]
        plain = self._step_costs.measured(len(parts)) if any(chances) else None
        if plain is None:
            return [0] * len(parts)
        wanted, tokens, gain, longest, rate = [], len(parts), float(len(parts)), 0, len(parts) / plain * MARGIN
        for each in chances:
            expected = [0.0, *accumulate(accumulate(each, mul))]
            best = 0
            for size in SIZES:
                if size < len(expected):
                    seconds = self._step_costs.estimated(tokens + size) + self._drafting(max(longest, size))
                    if (gain + expected[size]) / seconds > rate:
                        best, rate = size, (gain + expected[size]) / seconds
            wanted.append(best)
            tokens, gain, longest = tokens + best, gain + expected[best], max(longest, best)
        return wanted

    def forward(self, backend: Steps, parts: List[Part]) -> tuple[list[Part], list[Outcome]]:
        """Drafts for the parts that have room, and runs the step: the parts as they were run, and an outcome for each."""
        asked = {part.sequence.number for part in parts if _is_asked(part)}
        parts = with_masks(self._drafted(parts, backend.vocab_size))
        before = self._clock()
        outcomes = forward(backend, parts)
        if all(part.is_decoding for part in parts):
            self._step_costs.add(sum(1 + len(part.drafted) for part in parts), self._clock() - before)
        for part, outcome in zip(parts, outcomes, strict=True):
            if part.drafted and outcome.choices and part.sequence.number in asked:
                self._learn(part, [choice.token for choice in outcome.choices])
        return parts, outcomes

    def close(self) -> None:
        self._drafter.close()

    def _drafted(self, parts: List[Part], vocab_size: int) -> list[Part]:
        asked = [part for part in parts if _is_asked(part)]
        if not asked:
            self._undrafted += 1
            if self._undrafted == StepCosts.STALE:
                self._draft_seconds.clear()
            return list(parts)
        self._undrafted = 0
        before = self._clock()
        found = iter(self._drafter.draft([(part.sequence, part.room) for part in asked]))
        self._draft_seconds.append((self._clock() - before) / max(part.room for part in asked))
        return [replace(part, drafted=tuple(_sensible(next(found), part, vocab_size))) if _is_asked(part) else part for part in parts]

    def _drafting(self, size: int) -> float:
        """Seconds that so many drafts take."""
        return size * sorted(self._draft_seconds)[len(self._draft_seconds) // 2] if self._draft_seconds else 0.0

    def _learn(self, part: Part, chosen: List[int]) -> None:
        self._drafter.learn(part.sequence, part.drafted, chosen)
        self.num_drafted += len(part.drafted)
        for ours, theirs in zip(part.drafted, chosen, strict=False):
            if ours != theirs:
                break
            self.num_right += 1


class StepCosts:
    """Seconds of a step by its number of tokens, as measured lately: the median, so that one disturbed step says nothing."""

    KEPT = 7
    NEEDED = 3
    STALE = 512  # steps after which a measurement is forgotten
    TICK = 1e-9  # a clock may be too coarse to see a step
    HOPE = 0.02  # what one token more is thought to add, until it is measured

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._latest: dict[int, int] = {}
        self._num_steps = 0

    def add(self, num_tokens: int, seconds: float) -> None:
        self._num_steps += 1
        if self._is_stale(num_tokens):
            self._seconds[num_tokens] = deque(maxlen=self.KEPT)
        values = self._seconds[num_tokens]
        values.append(max(seconds, self.TICK))
        self._medians[num_tokens] = sorted(values)[len(values) // 2]
        self._latest[num_tokens] = self._num_steps

    def measured(self, num_tokens: int) -> float | None:
        """Seconds of a step of so many tokens; None if too few were measured lately."""
        if self._is_stale(num_tokens) or len(self._seconds[num_tokens]) < self.NEEDED:
            return None
        return self._medians[num_tokens]

    def estimated(self, num_tokens: int) -> float:
        """As measured, or else by what smaller and larger steps took; something must have been measured.

        What was measured once or twice may have been disturbed: it is thought to take no more than what lies between its neighbours.
        """
        known = sorted(size for size in self._seconds if not self._is_stale(size))
        smaller = max((size for size in known if size < num_tokens), default=None)
        larger = min((size for size in known if size > num_tokens), default=None)
        if num_tokens in known:
            if smaller is None or larger is None or len(self._seconds[num_tokens]) >= self.NEEDED:
                return self._medians[num_tokens]
            less, more = self._medians[smaller], self._medians[larger]
            between = less + (more - less) * (num_tokens - smaller) / (larger - smaller)
            return min(*self._seconds[num_tokens], between)
        guesses = [self._medians[larger]] if larger is not None else []
        if smaller is not None:
            guesses.append(self._medians[smaller] * (1.0 + self.HOPE * (num_tokens - smaller)))
        return min(guesses)

    def _is_stale(self, num_tokens: int) -> bool:
        return num_tokens not in self._latest or self._num_steps - self._latest[num_tokens] > self.STALE


class Rate:
    """How often something was right lately: each observation counts `fade` times as much as the next."""

    def __init__(self, fade: float, chance: float, weight: float) -> None:
        self._fade = fade
        self._right, self._all = chance * weight, weight

    def observe(self, is_right: bool) -> None:
        self._right = self._right * self._fade + is_right
        self._all = self._all * self._fade + 1.0

    def chance(self, before: float | None = None, weight: float = 2.0) -> float:
        """The share; with `before`, which counts for `weight` observations."""
        return self._right / self._all if before is None else (self._right + before * weight) / (self._all + weight)


def _is_asked(part: Part) -> bool:
    """Whether there is room for drafts, and nothing forced that takes it."""
    return part.room > 0 and not part.drafted


def _sensible(drafted: List[int], part: Part, vocab_size: int) -> Iterator[int]:
    """As many as there is room for, up to the first that cannot be chosen or that ends the answer."""
    for token in drafted[: part.room]:
        if token >= vocab_size:
            return
        yield token
        if token in part.sequence.stop_ids:
            return
