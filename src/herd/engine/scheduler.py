"""Decides which tokens run in the next step and on which pages. Integers only: no tensors, no text, no clock.

    waiting --admit--> running --finish--> gone
       ^                  |
       +----- preempt ----+      when pages run out: youngest first; its pages return, it starts over

Rules
  1. One step serves decoding sequences first, one token each, then fills the rest of the token budget
     with prompt chunks, oldest request first.
  2. A request whose prompt begins like something cached starts after the shared pages; at least its last
     token is computed again, because somebody has to make its logits.
  3. A sequence has pages for its whole prompt when it is admitted, and takes one more whenever it outgrows them.
  4. No request waits for ever: requests are admitted in the order of their numbers, a preempted one keeps its number,
     and the oldest running one is never preempted. What was chosen before a preemption stays chosen.
  5. Scores whose reader has not come for the last rows are held: they do not run, and they are the first to give way.

`check()` verifies after any step: free + owned + cached == all pages; every sequence owns exactly
ceil(placed / page_tokens); no page has two writers. Tests call it after each of 10,000 random steps.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from collections.abc import Sequence as List
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.engine.pages import Pages, first_key, next_key
from herd.engine.request import Purpose, Sequence, Status
from herd.errors import HerdError
from herd.records import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a step and the cache may be."""

    num_pages: int
    page_tokens: int
    max_batch: int
    max_step_tokens: int
    max_step_outputs: int

    @property
    def cache_tokens(self) -> int:
        """The longest sequence that the pages can hold."""
        return self.num_pages * self.page_tokens

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_tokens)


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's share of a step: `count` tokens from position `start`, and logits of the last `num_outputs`. There is room for
    `room` tokens more, and `drafted`, at most so many, are tried: not known to be the sequence's, each with logits. Of a sequence that is
    held to a language, `masks` say what may be drawn after the part and after each drafted token, or `problem` why nothing may."""

    sequence: Sequence
    start: int
    count: int
    num_outputs: int
    room: int = 0
    drafted: tuple[int, ...] = ()
    masks: tuple[NDArray[np.uint32], ...] = ()
    problem: HerdError | None = None

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def draws(self) -> bool:
        """Whether a token is chosen after this part."""
        return self.num_outputs > 0 and self.sequence.purpose is Purpose.ANSWER

    @property
    def is_decoding(self) -> bool:
        """Whether it is the one token that the sequence has to compute before it can choose the next."""
        return self.draws and self.count == 1


class Scheduler:
    """The queue, the running sequences and their pages."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pages = Pages(limits.num_pages)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preempted = 0

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence at the end of the queue. It must fit into all pages together."""
        assert self.limits.pages_for(sequence.max_length) <= self.limits.num_pages
        insort(self.waiting, sequence, key=_number)

    def plan(self) -> list[Part]:
        """The next step. Empty only if there is nothing that may run."""
        parts: list[Part] = []
        tokens, outputs = self.limits.max_step_tokens, self.limits.max_step_outputs
        for sequence in self._in_order():
            if tokens == 0 or outputs == 0:
                break
            part = _part(sequence, tokens, outputs)
            parts.append(part)
            tokens -= part.count
            outputs -= part.num_outputs
        return parts

    def make_room(self, parts: List[Part], wanted: List[int]) -> list[Part]:
        """The same parts with room for as many drafted tokens as are wanted, within the limits of a step and of the answers, as
        far as pages reach that nobody owns."""
        tokens = self.limits.max_step_tokens - sum(part.count for part in parts)
        outputs = self.limits.max_step_outputs - sum(part.num_outputs for part in parts)
        made = []
        for part, count in zip(parts, wanted, strict=True):
            room = self._room(part.sequence, min(count, tokens, outputs)) if part.is_decoding else 0
            tokens, outputs = tokens - room, outputs - room
            made.append(replace(part, room=room))
        return made

    def commit(self, sequence: Sequence, computed: int) -> None:
        """The keys and values of the first `computed` tokens are in the pages: the full ones can now be found by others. Pages of
        drafted tokens that were wrong return."""
        full_before = sequence.computed // self.limits.page_tokens
        sequence.computed = computed
        sequence.placed = min(sequence.placed, sequence.length)
        while len(sequence.pages) > self.limits.pages_for(sequence.placed):
            self.pages.release(sequence.pages.pop())
        for index in range(full_before, computed // self.limits.page_tokens):
            self.pages.name(sequence.pages[index], self._key(sequence, index))

    def finish(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Takes a sequence out, wherever it is; its pages return at once. `keep` leaves their contents in the cache."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._give_back(sequence, keep)
        sequence.status = Status.GONE

    def check(self) -> None:
        """Fails (AssertionError) if an invariant is broken."""
        self.pages.check()
        owners = [0] * self.limits.num_pages
        for sequence in self.running:
            assert sequence.status is Status.RUNNING
            assert 0 <= sequence.computed <= sequence.placed <= sequence.max_length
            assert len(sequence.pages) == self.limits.pages_for(sequence.placed)
            for index, page in enumerate(sequence.pages):
                owners[page] += 1
                if index >= sequence.computed // self.limits.page_tokens:
                    assert self.pages.owners(page) == 1, "a page that will be written has one owner"
                    assert not self.pages.is_known(page), "a page that will be written is not known by its contents"
        assert owners == [self.pages.owners(page) for page in range(self.limits.num_pages)], "every owner is a running sequence"
        for sequence in self.waiting:
            assert sequence.status is Status.WAITING and not sequence.pages and sequence.computed == sequence.placed == 0
        for queue in (self.waiting, self.running):
            assert queue == sorted(queue, key=_number)
        assert len(self.running) <= self.limits.max_batch

    def _in_order(self) -> Iterator[Sequence]:
        """Whoever may run, by the rules: decoding, then the others that run, then those that can be admitted."""
        decoding = [s for s in self.running if _is_decoding(s)]
        for sequence in decoding:
            if sequence.status is Status.RUNNING and self._place(sequence):
                yield sequence
        yield from [s for s in self.running if not s.is_held and not _is_decoding(s)]
        for sequence in [s for s in self.waiting if not s.is_held]:
            if not self._admit(sequence):
                return
            yield sequence

    def _place(self, sequence: Sequence) -> bool:
        """Pages for all tokens of a running sequence, if need be from somebody younger; False if it had to give way itself."""
        while len(sequence.pages) < self.limits.pages_for(sequence.length):
            page = self.pages.take()
            if page is not None:
                sequence.pages.append(page)
                continue
            victim = next((s for s in self.running if s.is_held), self.running[-1])
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.placed = sequence.length
        return True

    def _room(self, sequence: Sequence, count: int) -> int:
        """Gives a sequence that has its place pages for up to `count` tokens more; the last token of an answer is never computed."""
        count = max(0, min(count, sequence.max_length - sequence.length - 1))
        while len(sequence.pages) < self.limits.pages_for(sequence.length + count):
            page = self.pages.take()
            if page is None:
                count = len(sequence.pages) * self.limits.page_tokens - sequence.length
                break
            sequence.pages.append(page)
        sequence.placed = sequence.length + count
        return count

    def _admit(self, sequence: Sequence) -> bool:
        """Starts a waiting sequence if there is a place in the batch and there are pages for all its tokens."""
        while True:
            shared, tail, computed = self._reusable(sequence)
            reused = [*shared, *tail]
            needed = self.limits.pages_for(sequence.length) - len(reused)
            available = self.pages.num_available - sum(1 for page in reused if self.pages.owners(page) == 0)
            if needed <= available and len(self.running) < self.limits.max_batch:
                break
            held = next((s for s in self.running if s.is_held), None)
            if held is None:
                return False
            self._preempt(held)
        for page in shared:
            self.pages.share(page)
        for page in tail:
            self.pages.take_over(page)
        sequence.pages = reused
        sequence.computed = computed
        if sequence.cached_tokens is None:
            sequence.cached_tokens = computed
        sequence.status = Status.RUNNING
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_number)
        placed = self._place(sequence)
        assert placed, "there were enough pages"
        return True

    def _reusable(self, sequence: Sequence) -> tuple[list[int], list[int], int]:
        """Cached full pages, a partly filled one after them (or none), and how many tokens they cover together."""
        if sequence.purpose is not Purpose.ANSWER:
            return [], [], 0
        size, last = self.limits.page_tokens, sequence.length - 1
        shared = self.pages.find([self._key(sequence, index) for index in range(last // size)])
        start = len(shared) * size
        tail = self.pages.tail(self._key(sequence, len(shared) - 1), sequence.tokens[start : min(start + size, last)])
        return (shared, [], start) if tail is None else (shared, [tail[0]], start + tail[1])

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preempted += 1
        self.running.remove(sequence)
        self._give_back(sequence, keep=True)
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=_number)

    def _give_back(self, sequence: Sequence, keep: bool) -> None:
        """Returns pages from the last to the first, so that the cache loses ends before beginnings."""
        full, rest = divmod(sequence.computed, self.limits.page_tokens)
        for index in reversed(range(len(sequence.pages))):
            page = sequence.pages[index]
            if not keep and self.pages.owners(page) == 1:
                self.pages.forget_contents(page)
            if keep and index == full and rest:
                self.pages.leave_tail(page, self._key(sequence, index - 1), sequence.tokens[sequence.computed - rest : sequence.computed])
            else:
                self.pages.release(page)
        sequence.pages = []
        sequence.computed = sequence.placed = 0

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """The key of the sequence's full page `index`; -1 is what comes before the first."""
        if index < 0:
            return first_key(sequence.salt)
        keys, size = sequence.page_keys, self.limits.page_tokens
        while len(keys) <= index:
            before = keys[-1] if keys else first_key(sequence.salt)
            keys.append(next_key(before, sequence.tokens[len(keys) * size : (len(keys) + 1) * size]))
        return keys[index]


def _number(sequence: Sequence) -> int:
    return sequence.number


def _is_decoding(sequence: Sequence) -> bool:
    return sequence.purpose is Purpose.ANSWER and sequence.num_pending == 1


def _part(sequence: Sequence, tokens: int, outputs: int) -> Part:
    count = min(sequence.num_pending, tokens)
    if sequence.purpose is Purpose.ANSWER:
        return Part(sequence, sequence.computed, count, int(count == sequence.num_pending))
    known = max(0, min(sequence.scored - sequence.computed, count))
    count = min(count, known + outputs)
    return Part(sequence, sequence.computed, count, count - known)
