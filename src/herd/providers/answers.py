"""An answer on its way through a server: events arrive from an engine's process, and are taken when somebody looks.

Stream         what the supervisor knows of it: it puts events in
StreamAnswer   what the asker holds: it takes them out; leaving it, or losing it, cancels the request
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import final

from herd.errors import CapacityError, EngineLost, HerdError
from herd.providers.base import Accepted, ChatRequest, CompletionRequest, Event, Failed, Finished

UNREAD_MAX = 65536
"""Events that may wait to be read. A client that leaves more unread for so long is given up."""
_LAST = (Finished, Failed)


@final
class Stream:
    """One request, from when it is asked to its last event. leave: tells that nobody waits any more."""

    __slots__ = (
        "_asked_at",
        "_leave",
        "_loop",
        "_take",
        "_waiter",
        "accepted",
        "events",
        "has_started",
        "is_over",
        "problem",
        "request",
        "tries",
    )

    def __init__(self, request: ChatRequest | CompletionRequest, loop: asyncio.AbstractEventLoop, leave: Callable[[], None]) -> None:
        self.request = request
        self.events: list[Event] = []
        self.accepted: Accepted | None = None
        self.problem: HerdError | None = None
        self.has_started = self.is_over = False
        self.tries = 0
        self._asked_at = time.monotonic()
        self._loop = loop
        self._leave = leave
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[tuple[Event, ...]], bool] | None = None

    def current_request(self) -> ChatRequest | CompletionRequest:
        """The request as it is to be sent now: with what is left of its time, and with the seed that its asker was told."""
        request = self.request
        if self.accepted is not None and request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=self.accepted.seed))
        if request.deadline_s is not None and request.deadline_s > 0:
            request = replace(request, deadline_s=max(0.0, request.deadline_s - (time.monotonic() - self._asked_at)))
        return request

    def accept(self, accepted: Accepted) -> None:
        self.accepted = accepted
        self._wake()

    def refuse(self, problem: HerdError) -> None:
        """The request cannot be honoured. One that was accepted before, and is asked again after a crash, fails instead."""
        if self.accepted is not None:
            self.give((Failed(problem),))
            return
        self.problem = problem
        self.is_over = True
        self._wake()

    def give(self, events: tuple[Event, ...]) -> bool:
        """More events. False if nobody reads them."""
        if self.is_over:
            return False
        self.is_over = type(events[-1]) in _LAST
        if (take := self._take) is not None:
            try:
                goes_on = take(events)
            except Exception as problem:
                self._fail_waiter(problem)
                return True
            if self.is_over or not goes_on:
                self._take = None
                self._wake()
            return True
        self.events += events
        if len(self.events) > UNREAD_MAX and not self.is_over:
            self.events.append(Failed(CapacityError("The answer was not read as fast as it came, and was given up.")))
            self.is_over = True
            self._wake()
            return False
        self._wake()
        return True

    def lose(self, error: EngineLost) -> None:
        """What computed it is gone."""
        if not self.is_over:
            if self.accepted is None:
                self.refuse(error)
            else:
                self.give((Failed(error),))

    def leave(self) -> None:
        """Nobody waits any more."""
        if not self.is_over:
            self.is_over = True
            self._leave()
            self._wake()

    async def wait(self) -> None:
        """Until something is new. One task waits at a time."""
        assert self._waiter is None, "an answer is read by one task at a time"
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def poured(self, take: Callable[[tuple[Event, ...]], bool]) -> None:
        """Has `take` called by whoever gives events, until it says no, or raises, or there are no more."""
        self._take = take
        try:
            await self.wait()
        finally:
            self._take = None

    def _fail_waiter(self, problem: Exception) -> None:
        self._take = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(problem)

    def leave_soon(self) -> None:
        """As `leave`, from any thread: the garbage collector's, say."""
        if not self.is_over and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self.leave)
            except RuntimeError:
                return  # the loop was closed in between, and everything with it

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@final
class StreamAnswer:
    """An `Answer`."""

    __slots__ = ("__weakref__", "_is_read", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._is_read = False

    async def accepted(self) -> Accepted:
        stream = self._stream
        while stream.accepted is None and stream.problem is None and not stream.is_over:
            await stream.wait()
        if stream.problem is not None:
            raise stream.problem
        if stream.accepted is None:
            failed = next((event for event in stream.events if isinstance(event, Failed)), None)
            raise failed.error if failed is not None else EngineLost("The request was cancelled.")
        return stream.accepted

    def __aiter__(self) -> StreamAnswer:
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        stream = self._stream
        while not stream.events:
            if stream.problem is not None and not self._is_read:
                self._is_read = True
                raise stream.problem
            if stream.is_over:
                raise StopAsyncIteration
            await stream.wait()
        events = tuple(stream.events)
        stream.events.clear()
        return events

    async def pour(self, take: Callable[[tuple[Event, ...]], bool]) -> None:
        stream = self._stream
        if stream.events and not take(await self.__anext__()):
            return
        if not stream.events and not stream.is_over:
            await stream.poured(take)

    async def aclose(self) -> None:
        self._stream.leave()
        self._stream.events.clear()

    def __del__(self) -> None:
        self._stream.leave_soon()
