"""Decides which tokens run in the next step and on which pages. Integers only: no tensors, no text, no clock.

    waiting --admit--> running --finish--> gone
       ^                  |
       +----- preempt ----+      its pages return, it starts over

Rules
  1. One step serves decoding sequences first, one token each, then fills the rest of the token budget with prompt chunks: equal
     parts for the callers that have any, and within one caller's the oldest request first.
  2. A request whose prompt begins like something cached starts after the shared pages, and after those that the disk had; at least
     its last token is computed again, because somebody has to make its logits.
  3. A sequence has pages for its whole prompt when it is admitted, and takes one more whenever it outgrows them.
  4. Admitted next is the oldest request of the caller who has the fewest running. If there is no room for it, nobody passes it; and if
     its caller has none running, callers with several give their youngest up for it.
  5. When pages run out, whoever gives way is the youngest of the caller who has the most running.
  6. Requests of low priority are admitted when no other waits, and give way first. Scores whose reader has not come for the
     last rows are held: they do not run, and they give way before everybody else.

No request (but one of low priority) waits for ever. The oldest running one is never preempted: the youngest of a caller with several
is not the oldest, and where nobody has several it is the youngest of all. So there is always one that gets to its end, and only
finitely many are older than a given one. A caller's oldest request is admitted at the latest when none of his runs and all older
ones are gone; then his next one is the oldest. What was chosen before a preemption stays chosen, and a preempted request keeps its number.

`check()` verifies after any step: free + owned + cached == all pages; every sequence owns exactly
ceil(placed / page_tokens); no page has two writers. Tests call it after each of 10,000 random steps.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
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

    from herd.engine.lasting import Lasting


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


@dataclass(slots=True, eq=False)  # made for every token: what is frozen takes three times as long to make
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
    masks: tuple[NDArray[np.uint32] | None, ...] = ()
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
        self._shares: Counter[tuple[bool, str]] = Counter()  # running sequences by priority and caller
        self._queued: Counter[tuple[bool, str]] = Counter()  # waiting ones
        self.num_preempted = 0
        self.lasting: Lasting | None = None

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence at the end of the queue. It must fit into all pages together."""
        assert self.limits.pages_for(sequence.max_length) <= self.limits.num_pages
        self._enqueue(sequence)

    def plan(self) -> list[Part]:
        """The next step. Empty only if there is nothing that may run."""
        tokens, outputs = self.limits.max_step_tokens, self.limits.max_step_outputs
        size, num_preempted = self.limits.page_tokens, self.num_preempted
        answer = Purpose.ANSWER
        decoding = [s for s in self.running if len(s.tokens) - s.computed == 1 and s.purpose is answer]  # `_is_decoding`
        for sequence in decoding:
            length = len(sequence.tokens)
            if length <= len(sequence.pages) * size:
                sequence.placed = length
            elif sequence.status is Status.RUNNING:  # it may have had to give way by now
                self._place(sequence)
        if self.waiting:
            self._admit_in_turn(tokens - len(self.running))
        if len(decoding) == len(self.running) and num_preempted == self.num_preempted:
            return [Part(sequence, sequence.computed, 1, 1) for sequence in decoding]
        parts: list[Part] = []
        prompts: list[Sequence] = []
        for sequence in self.running:
            if _is_decoding(sequence):
                parts.append(Part(sequence, sequence.computed, 1, 1))
            elif not sequence.is_held:
                prompts.append(sequence)
        tokens, outputs = tokens - len(parts), outputs - len(parts)
        for sequence, most in shared_out(prompts, tokens):
            if outputs == 0:
                break
            part = _part(sequence, most, outputs)
            parts.append(part)
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
        size = self.limits.page_tokens
        full_before, full = sequence.computed // size, computed // size
        sequence.computed = computed
        if full == full_before and sequence.placed <= len(sequence.tokens):  # nearly always
            return
        if sequence.placed > len(sequence.tokens):
            sequence.placed = len(sequence.tokens)
            while len(sequence.pages) > self.limits.pages_for(sequence.placed):
                self.pages.release(sequence.pages.pop())
        for index in range(full_before, full):
            self.pages.name(sequence.pages[index], self._key(sequence, index))

    def finish(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Takes a sequence out, wherever it is; its pages return at once. `keep` leaves their contents in the cache."""
        if sequence.status is Status.WAITING:
            self._dequeue(sequence)
            self._forget_stored(sequence)
        elif sequence.status is Status.RUNNING:
            self._stop(sequence, keep)
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
        assert self.waiting == sorted(self.waiting, key=_place_in_queue) and self.running == sorted(self.running, key=_number)
        assert len(self.running) <= self.limits.max_batch
        assert self._shares == Counter(map(_turn, self.running)), "everybody's share is counted"
        assert self._queued == Counter(map(_turn, self.waiting)), "everybody who waits is counted"

    def _admit_in_turn(self, tokens: int) -> None:
        """Starts waiting sequences until their prompts fill a step of `tokens`, or there is no room for the next one. A caller who has
        none running is not told to wait because others' prompts fill the step: it is shared."""
        unread = sum(s.num_pending for s in self.running if not s.is_held and not _is_decoding(s))
        while (sequence := self._next_in_turn()) is not None:
            if (unread >= tokens and self._shares[_turn(sequence)]) or not self._admit(sequence):
                return
            unread += sequence.num_pending

    def _next_in_turn(self) -> Sequence | None:
        """By rules 4 and 6; None if nobody waits, or it is clear that there is no room for anybody."""
        shares = self._shares
        wanting = [turn for turn in self._queued if not turn[0]] or list(self._queued)
        least = min((shares.get(turn, 0) for turn in wanting), default=0)
        is_full = len(self.running) == self.limits.max_batch
        if is_full and least and not any(s.is_held or s.is_low for s in self.running):
            return None
        best, fewest = None, 0
        for sequence in self.waiting:
            if sequence.is_held:
                continue
            if best is not None and sequence.is_low and not best.is_low:
                break
            share = shares.get(_turn(sequence), 0)
            if best is None or share < fewest:
                best, fewest = sequence, share
                if share == least:
                    break
        return best

    def _place(self, sequence: Sequence) -> bool:
        """Pages for all tokens of a running sequence, if need be from somebody else; False if it had to give way itself."""
        while len(sequence.pages) < self.limits.pages_for(sequence.length):
            page = self.pages.take()
            if page is not None:
                sequence.pages.append(page)
                continue
            victim = self._first_to_give_way()
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.placed = sequence.length
        return True

    def _first_to_give_way(self) -> Sequence:
        """Of all that run, by rules 5 and 6."""
        held = next((s for s in self.running if s.is_held), None)
        return held or self._youngest_of_most(is_low=any(s.is_low for s in self.running))

    def _youngest_of_most(self, *, is_low: bool) -> Sequence:
        most = max(count for (low, _), count in self._shares.items() if low == is_low)
        return next(s for s in reversed(self.running) if s.is_low == is_low and self._shares[_turn(s)] == most)

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
            victim = self._gives_way_to(sequence, needed - available)
            if victim is None:
                return False
            self._preempt(victim)
        for page in shared:
            self.pages.share(page)
        for page in tail:
            self.pages.take_over(page)
        sequence.pages = reused
        sequence.computed = computed
        sequence.status = Status.RUNNING
        self._dequeue(sequence)
        insort(self.running, sequence, key=_number)
        self._shares[_turn(sequence)] += 1
        placed = self._place(sequence)
        assert placed, "there were enough pages"
        self._fill(sequence)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        return True

    def missing(self, sequence: Sequence) -> tuple[int, list[bytes]]:
        """Of how many full pages of a prompt the beginning is there, and the keys of the others."""
        keys = [self._key(sequence, index) for index in range((sequence.length - 1) // self.limits.page_tokens)]
        found = len(self.pages.find(keys))
        return found, keys[found:]

    def _fill(self, sequence: Sequence) -> None:
        """Puts what the disk had of a prompt into its pages, after those that it shares."""
        index = sequence.computed // self.limits.page_tokens
        while self.lasting is not None and (contents := sequence.stored.get(index)) is not None:
            self.lasting.fill(sequence.pages[index], contents)
            self.pages.name(sequence.pages[index], self._key(sequence, index))
            index += 1
            sequence.computed = index * self.limits.page_tokens
        self._forget_stored(sequence)

    def _forget_stored(self, sequence: Sequence) -> None:
        if sequence.stored and self.lasting is not None:
            self.lasting.forget(len(sequence.stored))
        sequence.stored = {}

    def _gives_way_to(self, sequence: Sequence, missing: int) -> Sequence | None:
        """Who is preempted for a waiting sequence that lacks pages or a place in the batch; None if it has to wait. Nobody is if all
        that may be asked to give way do not have the pages that are missing."""
        held = next((s for s in self.running if s.is_held), None)
        if held is not None:
            return held
        is_low = sequence.is_low
        if not is_low and any(s.is_low for s in self.running):
            return self._youngest_of_most(is_low=True)
        rivals = [s for s in self.running if s.is_low == is_low]
        if self._shares[_turn(sequence)] or all(self._shares[_turn(s)] < 2 for s in rivals):
            return None
        oldest = {_turn(s): s for s in reversed(rivals)}
        could_come = sum(1 for s in rivals if oldest[_turn(s)] is not s for page in s.pages if self.pages.owners(page) == 1)
        return self._youngest_of_most(is_low=is_low) if missing <= could_come else None

    def _reusable(self, sequence: Sequence) -> tuple[list[int], list[int], int]:
        """Cached full pages, a partly filled one after them (or none), and how many tokens they cover together."""
        if sequence.purpose is not Purpose.ANSWER:
            return [], [], 0
        size, last = self.limits.page_tokens, sequence.length - 1
        shared = self.pages.find([self._key(sequence, index) for index in range(last // size)])
        start = len(shared) * size
        if len(shared) in sequence.stored:
            return shared, [], start
        tail = self.pages.tail(self._key(sequence, len(shared) - 1), sequence.contents(start, min(start + size, last)))
        return (shared, [], start) if tail is None else (shared, [tail[0]], start + tail[1])

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preempted += 1
        self._stop(sequence, keep=True)
        sequence.status = Status.WAITING
        self._enqueue(sequence)

    def _stop(self, sequence: Sequence, keep: bool) -> None:
        self.running.remove(sequence)
        _less(self._shares, _turn(sequence))
        self._give_back(sequence, keep)

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_place_in_queue)
        self._queued[_turn(sequence)] += 1

    def _dequeue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        _less(self._queued, _turn(sequence))

    def _give_back(self, sequence: Sequence, keep: bool) -> None:
        """Returns pages from the last to the first, so that the cache loses ends before beginnings."""
        full, rest = divmod(sequence.computed, self.limits.page_tokens)
        for index in reversed(range(len(sequence.pages))):
            page = sequence.pages[index]
            if not keep and self.pages.owners(page) == 1:
                self.pages.forget_contents(page)
            if keep and index == full and rest:
                self.pages.leave_tail(page, self._key(sequence, index - 1), sequence.contents(sequence.computed - rest, sequence.computed))
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
            keys.append(next_key(before, sequence.contents(len(keys) * size, (len(keys) + 1) * size)))
        return keys[index]


def shared_out(prompts: List[Sequence], tokens: int) -> list[tuple[Sequence, int]]:
    """How many tokens each of these may have in a step with room for so many: those of low priority what the others leave; callers
    equal parts, and what one does not need goes to the others; of one caller's the oldest first. Nobody who has none is listed. Where
    there are fewer tokens than callers, those with the oldest prompts have one each."""
    found: list[tuple[Sequence, int]] = []
    for is_low in (False, True):
        of_caller: dict[str, list[Sequence]] = {}
        for sequence in prompts:
            if sequence.is_low == is_low:
                of_caller.setdefault(sequence.caller, []).append(sequence)
        groups = [(sum(s.num_pending for s in group), group) for group in of_caller.values()][: max(tokens, 0)]
        for index, (wanted, group) in enumerate(sorted(groups, key=lambda each: each[0])):
            part = min(wanted, tokens // (len(groups) - index))
            tokens -= part
            for sequence in group:
                most = min(part, sequence.num_pending)
                if most:
                    found.append((sequence, most))
                    part -= most
    return found


def _number(sequence: Sequence) -> int:
    return sequence.number


def _less(counts: Counter[tuple[bool, str]], turn: tuple[bool, str]) -> None:
    counts[turn] -= 1
    if not counts[turn]:
        del counts[turn]


def _place_in_queue(sequence: Sequence) -> tuple[bool, int]:
    return sequence.is_low, sequence.number


def _turn(sequence: Sequence) -> tuple[bool, str]:
    """Whose turn it is when it is this sequence's."""
    return sequence.is_low, sequence.caller


def _is_decoding(sequence: Sequence) -> bool:
    return len(sequence.tokens) - sequence.computed == 1 and sequence.purpose is Purpose.ANSWER


def _part(sequence: Sequence, tokens: int, outputs: int) -> Part:
    count = min(sequence.num_pending, tokens)
    if sequence.purpose is Purpose.ANSWER:
        return Part(sequence, sequence.computed, count, int(count == sequence.num_pending))
    known = max(0, min(sequence.scored - sequence.computed, count))
    count = min(count, known + outputs)
    return Part(sequence, sequence.computed, count, count - known)
