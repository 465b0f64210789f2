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
  4.-6. Who is admitted next, and who gives way when pages run out: `turns`.

`check()` verifies after any step: free + owned + cached == all pages; every sequence owns exactly
ceil(placed / page_tokens); no page has two writers. Tests call it after each of 10,000 random steps.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.engine.pages import Pages, first_key, next_key
from herd.engine.parts import Limits, Part, is_decoding, part_of, shared_out
from herd.engine.request import Purpose, Sequence, Status
from herd.engine.turns import Turns

if TYPE_CHECKING:
    from herd.engine.lasting import Lasting


class Scheduler:
    """The queue, the running sequences and their pages."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pages = Pages(limits.num_pages)
        self._turns = Turns()
        self.waiting, self.running = self._turns.waiting, self._turns.running
        self.num_preempted = 0
        self.lasting: Lasting | None = None

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence at the end of the queue. It must fit into all pages together."""
        assert self.limits.pages_for(sequence.max_length) <= self.limits.num_pages
        self._turns.enqueue(sequence)

    def plan(self) -> list[Part]:
        """The next step. Empty only if there is nothing that may run."""
        tokens, outputs = self.limits.max_step_tokens, self.limits.max_step_outputs
        size, num_preempted = self.limits.page_tokens, self.num_preempted
        answer = Purpose.ANSWER
        decoding = [s for s in self.running if len(s.tokens) - s.computed == 1 and s.purpose is answer]  # `is_decoding`
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
            if is_decoding(sequence):
                parts.append(Part(sequence, sequence.computed, 1, 1))
            elif not sequence.is_held:
                prompts.append(sequence)
        tokens, outputs = tokens - len(parts), outputs - len(parts)
        for sequence, most in shared_out(prompts, tokens):
            if outputs == 0:
                break
            part = part_of(sequence, most, outputs)
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
            self._turns.dequeue(sequence)
            self._forget_stored(sequence)
        elif sequence.status is Status.RUNNING:
            self._turns.stop(sequence)
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
        assert len(self.running) <= self.limits.max_batch
        self._turns.check()

    def _admit_in_turn(self, tokens: int) -> None:
        """Starts waiting sequences until their prompts fill a step of `tokens`, or there is no room for the next one. A caller who has
        none running is not told to wait because others' prompts fill the step: it is shared."""
        unread = sum(s.num_pending for s in self.running if not s.is_held and not is_decoding(s))
        while (sequence := self._turns.next(self.limits.max_batch)) is not None:
            if (unread >= tokens and self._turns.has_share(sequence)) or not self._admit(sequence):
                return
            unread += sequence.num_pending

    def _place(self, sequence: Sequence) -> bool:
        """Pages for all tokens of a running sequence, if need be from somebody else; False if it had to give way itself."""
        while len(sequence.pages) < self.limits.pages_for(sequence.length):
            page = self.pages.take()
            if page is not None:
                sequence.pages.append(page)
                continue
            victim = self._turns.first_to_give_way()
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
            victim = self._turns.gives_way_to(sequence, needed - available, self.pages.owners)
            if victim is None:
                return False
            self._preempt(victim)
        for page in shared:
            self.pages.share(page)
        for page in tail:
            self.pages.take_over(page)
        sequence.pages = reused
        sequence.computed = computed
        self._turns.start(sequence)
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
        self._turns.stop(sequence)
        self._give_back(sequence, keep=True)
        self._turns.enqueue(sequence)

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
