"""Whose turn it is: the queue, those that run, and who gives way to whom. Fairness between callers, and nothing of pages' contents.

Rules (numbered as the scheduler's)
  4. Admitted next is the oldest request of the caller who has the fewest running. If there is no room for it, nobody passes it; and if
     its caller has none running, callers with several give their youngest up for it.
  5. When pages run out, whoever gives way is the youngest of the caller who has the most running.
  6. Requests of low priority are admitted when no other waits, and give way first. Scores whose reader has not come for the
     last rows are held: they do not run, and they give way before everybody else.

No request (but one of low priority) waits for ever. The oldest running one is never preempted: the youngest of a caller with several
is not the oldest, and where nobody has several it is the youngest of all. So there is always one that gets to its end, and only
finitely many are older than a given one. A caller's oldest request is admitted at the latest when none of his runs and all older
ones are gone; then his next one is the oldest. What was chosen before a preemption stays chosen, and a preempted request keeps its number.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable

from herd.backends.base import NO_PAGE
from herd.engine.request import Sequence, Status


class Turns:
    """The waiting and the running, each in their order, and how many each caller has of both."""

    def __init__(self) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._shares: Counter[tuple[bool, str]] = Counter()  # running sequences by priority and caller
        self._queued: Counter[tuple[bool, str]] = Counter()  # waiting ones

    def enqueue(self, sequence: Sequence) -> None:
        """Puts a sequence into the queue; one that was there before gets its old place."""
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=_place_in_queue)
        self._queued[_turn(sequence)] += 1

    def dequeue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        _less(self._queued, _turn(sequence))

    def start(self, sequence: Sequence) -> None:
        """Takes a sequence from the queue to those that run."""
        self.dequeue(sequence)
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_number)
        self._shares[_turn(sequence)] += 1

    def stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        _less(self._shares, _turn(sequence))

    def has_share(self, sequence: Sequence) -> bool:
        """Whether its caller has any that run, of the same priority."""
        return self._shares[_turn(sequence)] > 0

    def next(self, max_batch: int) -> Sequence | None:
        """By rules 4 and 6; None if nobody waits, or it is clear that there is no room for anybody."""
        shares = self._shares
        wanting = [turn for turn in self._queued if not turn[0]] or list(self._queued)
        least = min((shares.get(turn, 0) for turn in wanting), default=0)
        is_full = len(self.running) == max_batch
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

    def first_to_give_way(self) -> Sequence:
        """Of all that run, by rules 5 and 6."""
        held = next((s for s in self.running if s.is_held), None)
        return held or self._youngest_of_most(is_low=any(s.is_low for s in self.running))

    def _youngest_of_most(self, *, is_low: bool) -> Sequence:
        most = max(count for (low, _), count in self._shares.items() if low == is_low)
        return next(s for s in reversed(self.running) if s.is_low == is_low and self._shares[_turn(s)] == most)

    def gives_way_to(self, sequence: Sequence, missing: int, owners: Callable[[int], int]) -> Sequence | None:
        """Who is preempted for a waiting sequence that lacks pages or a place in the batch; None if it has to wait. Nobody is if all
        that may be asked to give way do not have the pages that are missing. owners: of a page."""
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
        could_come = sum(1 for s in rivals if oldest[_turn(s)] is not s for page in s.pages if page != NO_PAGE and owners(page) == 1)
        return self._youngest_of_most(is_low=is_low) if missing <= could_come else None

    def check(self) -> None:
        """Fails (AssertionError) if the books are wrong."""
        assert self.waiting == sorted(self.waiting, key=_place_in_queue) and self.running == sorted(self.running, key=_number)
        assert self._shares == Counter(map(_turn, self.running)), "everybody's share is counted"
        assert self._queued == Counter(map(_turn, self.waiting)), "everybody who waits is counted"


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
