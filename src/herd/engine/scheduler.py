"""Decides which tokens run in the next step and on which pages. Integers only: no tensors, no text, no clock.

    waiting --admit--> running --finish--> gone
       ^                  |
       +----- preempt ----+      its pages return, it starts over

Rules
  1. One step serves decoding sequences first, one token each, then fills the rest of the token budget with prompt chunks: equal
     parts for the callers that have any, and within one caller's the oldest request first.
  2. A request whose prompt begins like something cached starts after the shared pages, and after those that the disk had; at least
     its last token is computed again, because somebody has to make its logits.
  3. A sequence has pages for its whole prompt when it is admitted, and takes more whenever it outgrows them. Of layers with a window
     it has those that one may reach, and gives back what no later token sees (`tables`).
  4.-6. Who is admitted next, and who gives way when pages run out: `turns`.

`check()` verifies after any step: free + owned + cached == all pages; every sequence owns exactly what `placed` tokens need; no page
has two writers. Tests call it after each of 10,000 random steps.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.backends.base import NO_PAGE
from herd.engine.pages import Pages, first_key, next_key
from herd.engine.parts import Limits, Part, is_decoding, part_of, shared_out
from herd.engine.request import Purpose, Sequence, Status
from herd.engine.tables import Beginning, Tables
from herd.engine.turns import Turns

if TYPE_CHECKING:
    from herd.engine.lasting import Lasting


class Scheduler:
    """The queue, the running sequences and their pages."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pages = Pages(limits.num_pages)
        self.tables = Tables(limits, self.pages)
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
        size, groups, num_preempted = self.limits.page_tokens, self.limits.groups.count, self.num_preempted
        answer = Purpose.ANSWER
        decoding = [s for s in self.running if len(s.tokens) - s.computed == 1 and s.purpose is answer]  # `is_decoding`
        for sequence in decoding:
            length = len(sequence.tokens)
            if length * groups <= len(sequence.pages) * size:
                sequence.placed = length
            elif sequence.status is Status.RUNNING:  # it may have had to give way by now
                self._place(sequence)
        if self.tables.has_windows:  # prompts move on, too
            for sequence in [s for s in self.running if not (s.is_held or is_decoding(s))]:
                if sequence.status is Status.RUNNING:
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
        drafted tokens that were wrong return, and those that nobody looks at again."""
        size, before = self.limits.page_tokens, sequence.computed
        full_before, full = before // size, computed // size
        sequence.computed = computed
        if full == full_before and sequence.placed <= len(sequence.tokens):  # nearly always
            return
        if sequence.placed > len(sequence.tokens):
            sequence.placed = len(sequence.tokens)
            self.tables.shrink(sequence, sequence.placed)
        for index in range(full_before, full):
            self.tables.name(sequence, index, self._key(sequence, index))
        if full > full_before:
            self.tables.give_back_past(sequence, before)

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
            self.tables.check(sequence)
            for index, page in enumerate(sequence.pages):
                if page == NO_PAGE:
                    continue
                owners[page] += 1
                if index // self.limits.groups.count >= sequence.computed // self.limits.page_tokens:
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
        while not self.tables.extend(sequence, sequence.length):
            victim = self._turns.first_to_give_way()
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.placed = sequence.length
        return True

    def _room(self, sequence: Sequence, count: int) -> int:
        """Gives a sequence that has its place pages for up to `count` tokens more; the last token of an answer is never computed."""
        count = max(0, min(count, sequence.max_length - sequence.length - 1))
        if not self.tables.extend(sequence, sequence.length + count):
            count = self.tables.held(sequence) - sequence.length
            self.tables.shrink(sequence, sequence.length + count)
        sequence.placed = sequence.length + count
        return count

    def _admit(self, sequence: Sequence) -> bool:
        """Starts a waiting sequence if there is a place in the batch and there are pages for all its tokens."""
        while True:
            found = self._reusable(sequence)
            reused = found.reused
            needed = self.tables.needed(sequence.length, found.num_tokens) - len(reused)
            available = self.pages.num_available - sum(1 for page in reused if self.pages.owners(page) == 0)
            if needed <= available and len(self.running) < self.limits.max_batch:
                break
            victim = self._turns.gives_way_to(sequence, needed - available, self.pages.owners)
            if victim is None:
                return False
            self._preempt(victim)
        for page in found.tail:
            self.pages.take_over(page)
        for page in reused[: len(reused) - len(found.tail)]:
            self.pages.share(page)
        sequence.pages = [*found.pages, *found.tail]
        sequence.computed = found.num_tokens
        self._turns.start(sequence)
        placed = self._place(sequence)
        assert placed, "there were enough pages"
        self._fill(sequence, found)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        return True

    def missing(self, sequence: Sequence, has: Callable[[bytes], bool]) -> dict[int, bytes]:
        """The keys of full pages that a prompt can begin with and that are not here, by their places, of those that something else has."""
        return self.tables.missing(self._keys(sequence), has)

    def _fill(self, sequence: Sequence, found: Beginning) -> None:
        """Puts what the disk had of a prompt into its pages."""
        if self.lasting is not None:
            for place in found.stored:
                self.lasting.fill(sequence.pages[place], sequence.stored[place])
            for block in sorted({place // self.limits.groups.count for place in found.stored}):
                self.tables.name(sequence, block, self._key(sequence, block))
        self._forget_stored(sequence)

    def _forget_stored(self, sequence: Sequence) -> None:
        if sequence.stored and self.lasting is not None:
            self.lasting.forget(len(sequence.stored))
        sequence.stored = {}

    def _reusable(self, sequence: Sequence) -> Beginning:
        """What there is of the sequence's beginning, a partly filled block after the full ones too."""
        if sequence.purpose is not Purpose.ANSWER:
            return Beginning((), 0)
        size, last = self.limits.page_tokens, sequence.length - 1
        found = self.tables.find(self._keys(sequence), sequence.stored)
        start = found.num_tokens
        tail, count = self.tables.tail(self._key(sequence, start // size - 1), sequence.contents(start, min(start + size, last)))
        return replace(found, num_tokens=start + count, tail=tail) if count else found

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preempted += 1
        self._turns.stop(sequence)
        self._give_back(sequence, keep=True)
        self._turns.enqueue(sequence)

    def _give_back(self, sequence: Sequence, keep: bool) -> None:
        """Returns pages from the last to the first, so that the cache loses ends before beginnings."""
        full, rest = divmod(sequence.computed, self.limits.page_tokens)
        count = self.limits.groups.count
        for block in reversed(range(len(sequence.pages) // count)):
            pages = sequence.pages[block * count : (block + 1) * count]
            if keep and block == full and rest:
                contents = sequence.contents(sequence.computed - rest, sequence.computed)
                self.tables.leave_tail(pages, self._key(sequence, block - 1), contents)
                continue
            for page in pages:
                if page == NO_PAGE:
                    continue
                if not keep and self.pages.owners(page) == 1:
                    self.pages.forget_contents(page)
                self.pages.release(page)
        sequence.pages = []
        sequence.computed = sequence.placed = 0

    def _keys(self, sequence: Sequence) -> list[bytes]:
        """Of the full pages of all but its last token."""
        return [self._key(sequence, index) for index in range((sequence.length - 1) // self.limits.page_tokens)]

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """The key of the sequence's full page `index`; -1 is what comes before the first."""
        if index < 0:
            return first_key(sequence.salt)
        keys, size = sequence.page_keys, self.limits.page_tokens
        while len(keys) <= index:
            before = keys[-1] if keys else first_key(sequence.salt)
            keys.append(next_key(before, sequence.contents(len(keys) * size, (len(keys) + 1) * size)))
        return keys[index]
