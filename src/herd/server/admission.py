"""Who may begin now: limits of each key, and of the server as a whole.

What is over a limit is refused at once, with the time after which asking again makes sense; waiting in line is the engine's matter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from herd.records import dataclass
from herd.server.errors import ApiError

if TYPE_CHECKING:
    from herd.server.callers import Visit
    from herd.server.keys import Key
    from herd.server.metrics import Metrics
    from herd.server.settings import Settings

MINUTE_S = 60.0
FORGET_ABOVE = 10_000


@dataclass(slots=True)
class Bucket:
    """What is left of so much a minute. It fills steadily, and may be overdrawn by what was only known afterwards."""

    per_minute: float
    left: float
    at: float

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; 0 if it is."""
        self.left = min(self.per_minute, self.left + (now - self.at) * self.per_minute / MINUTE_S)
        self.at = now
        return max(0.0, (min(amount, self.per_minute) - self.left) * MINUTE_S / self.per_minute)

    def resize(self, per_minute: float) -> None:
        """The limit was changed: what is left changes by as much."""
        self.left += per_minute - self.per_minute
        self.per_minute = per_minute


class Bodies:
    """Bytes of bodies that are in memory for one request, counted against what all may take."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._size = 0

    def add(self, num_bytes: int) -> None:
        """`ApiError` 503 where all bodies together would take too much."""
        self._size += num_bytes
        self._admission.body_bytes += num_bytes
        if self._admission.body_bytes > self._admission.settings.max_bodies_bytes:
            raise ApiError(503, "Requests take more memory than this server gives them; try again.", retry_after_s=1.0)

    def leave(self) -> None:
        self._admission.body_bytes -= self._size
        self._size = 0


LONGEST_LATER_S = 60.0
_SPREAD = (0.5, 1.0, 1.5, 0.7, 1.2)


class Admission:
    """Counts requests and tokens of keys, and how much runs."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.running = 0
        self.body_bytes = 0
        self.settings = settings
        self._metrics = metrics
        self._requests: dict[str, Bucket] = {}
        self._tokens: dict[str, Bucket] = {}
        self._streams: dict[str, int] = {}
        self._interval_s, self._ended_at, self._refused = 0.0, time.monotonic(), 0

    def check_rate(self, key: Key | None) -> None:
        """One more request of this key. `ApiError` 429 where that is one too many."""
        if key is None or key.requests_per_minute is None:
            return
        bucket = _bucket(self._requests, key.id, key.requests_per_minute)
        if (wait_s := bucket.wait_s(1.0, time.monotonic())) > 0:
            self._refuse("requests", f"This key has {key.requests_per_minute} requests a minute, and they are used up.", wait_s)
        bucket.left -= 1.0

    @contextmanager
    def place(self, visit: Visit) -> Iterator[None]:
        """A place among those that models work for, for the length of the block. `ApiError` 429 where there is none."""
        self.check_place(visit)
        self._enter(visit.key, 1)
        try:
            yield
        finally:
            self._enter(visit.key, -1)

    def check_place(self, visit: Visit) -> None:
        """`ApiError` 429 where there is no place for a visit."""
        key = visit.key
        if self.running >= self.settings.max_requests:
            self._refuse("full", f"{self.running} requests are being answered or wait; more are not taken now.", self._later_s())
        if key is not None and key.streams is not None and self._streams.get(key.id, 0) >= key.streams:
            self._refuse("streams", f"This key has {key.streams} answers at the same time, and they are running.", 1.0)
        if key is not None and key.tokens_per_minute is not None:
            wait_s = _bucket(self._tokens, key.id, key.tokens_per_minute).wait_s(1.0, time.monotonic())
            if wait_s > 0:
                self._refuse("tokens", f"This key has {key.tokens_per_minute} tokens a minute, and they are used up.", wait_s)

    @contextmanager
    def bodies(self) -> Iterator[Bodies]:
        """Counts a request's body for as long as the request lasts."""
        found = Bodies(self)
        try:
            yield found
        finally:
            found.leave()

    def spend(self, visit: Visit, num_tokens: int) -> None:
        """Tokens of a prompt or an answer that were worked on for this visit."""
        key = visit.key
        if key is not None and key.tokens_per_minute is not None:
            bucket = _bucket(self._tokens, key.id, key.tokens_per_minute)
            bucket.wait_s(0.0, time.monotonic())
            bucket.left -= num_tokens

    def _later_s(self) -> float:
        """When those who are here now will have been answered, at the pace of late: each refused client is told its own time around that,
        so that they do not all come back at once."""
        self._refused = (self._refused + 1) % len(_SPREAD)
        return min(max(self.running * self._interval_s * _SPREAD[self._refused], 1.0), LONGEST_LATER_S)

    def _enter(self, key: Key | None, step: int) -> None:
        if step < 0:
            now = time.monotonic()
            self._interval_s = 0.9 * self._interval_s + 0.1 * min(now - self._ended_at, LONGEST_LATER_S)
            self._ended_at = now
        elif self.running == 0:
            self._ended_at = time.monotonic()  # idle time says nothing about the pace
        self.running += step
        self._metrics.active.set(self.running)
        if key is not None:
            now = self._streams.get(key.id, 0) + step
            if now:
                self._streams[key.id] = now
            else:
                self._streams.pop(key.id, None)

    def _refuse(self, reason: str, message: str, wait_s: float) -> None:
        self._metrics.refused.labels(reason).inc()
        raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=wait_s)


def _bucket(buckets: dict[str, Bucket], key_id: str, per_minute: int) -> Bucket:
    found = buckets.get(key_id)
    if found is None:
        if len(buckets) > FORGET_ABOVE:
            buckets.clear()
        found = buckets[key_id] = Bucket(per_minute, per_minute, time.monotonic())
    elif found.per_minute != per_minute:
        found.resize(per_minute)
    return found
