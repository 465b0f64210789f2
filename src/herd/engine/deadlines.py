"""Until when a request may take, and how long one that finds the queue full should wait. Clocks only; no queue, no pages."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import final

from herd.engine.request import Sequence, Status

SHORTEST_S, LONGEST_S = 1.0, 120.0


@final
class Deadlines:
    """Sequences by the time at which they are given up. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Sequence]] = []

    def add(self, sequence: Sequence, seconds: float) -> None:
        heapq.heappush(self._heap, (self._clock() + seconds, sequence.number, sequence))

    def passed(self) -> Iterator[Sequence]:
        """Those whose time is over and who are still there. Each is given once."""
        heap = self._heap
        while heap and (heap[0][2].status is Status.GONE or heap[0][0] <= self._clock()):
            sequence = heapq.heappop(heap)[2]
            if sequence.status is not Status.GONE:
                yield sequence


@final
class Pace:
    """How fast requests have been ending lately, so that one that is turned away can be told when to come again."""

    KEPT = 0.9  # each interval counts so much of the next one

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._latest: float | None = None
        self._interval_s = SHORTEST_S

    def ended(self) -> None:
        now = self._clock()
        if self._latest is not None:
            self._interval_s = self.KEPT * self._interval_s + (1.0 - self.KEPT) * min(now - self._latest, LONGEST_S)
        self._latest = now

    def wait_s(self, waiting: int) -> float:
        """Seconds until half of a queue of this length will have been served; at least one, at most two minutes."""
        return min(max(self._interval_s * waiting / 2, SHORTEST_S), LONGEST_S)
