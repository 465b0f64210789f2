"""A model in a process of its own, seen from a thread of `asyncio`: started, watched, started again when it dies.

    chat() --Ask--> [socket] --> engine's process        Queued, Started, Said ... --> [socket] --> Answer

What was still queued when the process died is asked again of its successor, and nobody notices; what was running fails, as part of it
was already said. A request that was asked `TRIES` times and never came to run is given up: it may be what kills the process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, final

from herd.errors import Busy, CapacityError, EngineLost, HerdError
from herd.providers.answers import Stream, StreamAnswer
from herd.providers.base import Accepted, Caller, ChatRequest, CompletionRequest, Embedding, Event, Gauges, ModelFacts, Priority
from herd.providers.frames import (
    AddAdapter,
    Ask,
    Beat,
    Begin,
    Broken,
    Call,
    Cancel,
    Count,
    Decode,
    Done,
    Embed,
    Encode,
    Frame,
    Moderate,
    Operation,
    Queued,
    Ready,
    Refused,
    RemoveAdapter,
    Said,
    Started,
    Told,
    Vectors,
    to_bytes,
)
from herd.providers.process import Deaths, EngineOptions, EngineProcess, Process
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.text.formats.guard import Verdict
    from herd.text.messages import Message

T = TypeVar("T")
TRIES = 3
SHORTEST_WAIT_S, LONGEST_WAIT_S = 1.0, 120.0
_LOG = logging.getLogger("herd.engine")


@dataclass(slots=True, eq=False)
class _Pending:
    """An operation whose result somebody waits for."""

    operation: Operation
    result: asyncio.Future[object]
    tries: int = 0


@final
class Supervisor:
    """One model's process, and a `Service` in front of it. All of it is used in the thread of one event loop."""

    def __init__(self, options: EngineOptions, start_process: Callable[..., Process] = EngineProcess) -> None:
        """start_process: makes a process, with the arguments of `EngineProcess`: one on another machine, say."""
        self._options = options
        self._start_process = start_process
        self._loop = asyncio.get_running_loop()
        self._process: Process | None = None
        self._facts: ModelFacts | None = None
        self._loaded: asyncio.Future[ModelFacts] = self._loop.create_future()
        self._streams: dict[int, Stream] = {}
        self._pending: dict[int, _Pending] = {}
        self._number = 0
        self._gauges = Gauges()
        self._deaths = Deaths(options.pauses_s, options.young_s)
        self._is_up = self._is_closed = False
        self._pause: asyncio.TimerHandle | None = None
        self._waiting = dict.fromkeys(Priority, 0)
        self._interval_s, self._ended_at = SHORTEST_WAIT_S, time.monotonic()

    async def start(self) -> ModelFacts:
        """Starts the process and waits for the model. Raises why it cannot be loaded."""
        self._spawn()
        try:
            return await self._loaded
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Ends the process. What is running fails. Idempotent."""
        self._is_closed, self._is_up = True, False
        if self._pause is not None:
            self._pause.cancel()
        self._lose_all(EngineLost("The model was unloaded."))
        process, self._process = self._process, None
        if process is not None:
            await process.aclose()

    @property
    def is_up(self) -> bool:
        """Whether the process can answer now."""
        return self._is_up

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for anything."""
        return not self._streams and not self._pending

    @property
    def num_open(self) -> int:
        """What is asked and not yet over."""
        return len(self._streams) + len(self._pending)

    @property
    def num_restarts(self) -> int:
        """How often the process was started again."""
        return self._deaths.all

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.process_id

    # Service

    @property
    def facts(self) -> ModelFacts:
        assert self._facts is not None, "the model was loaded"
        return self._facts

    @property
    def gauges(self) -> Gauges:
        return replace(self._gauges, restarts=self._deaths.all)

    def chat(self, request: ChatRequest) -> StreamAnswer:
        return self._ask(request)

    def complete(self, request: CompletionRequest) -> StreamAnswer:
        return self._ask(request)

    async def count(self, request: ChatRequest) -> int:
        return await self._call(Count(request), int)

    async def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]:
        return list(await self._call(Encode(text, bos, specials), tuple))

    async def decode(self, ids: Sequence[int]) -> str:
        return await self._call(Decode(tuple(ids)), str)

    async def embed(self, inputs: Sequence[str | Sequence[int]], caller: Caller) -> list[Embedding]:
        import numpy as np

        found = await self._call(Embed(tuple(inputs), caller), Vectors)
        vectors = (np.frombuffer(values, np.float32) for values in found.values)
        return [Embedding(vector, count) for vector, count in zip(vectors, found.num_tokens, strict=True)]

    async def moderate(self, messages: Sequence[Message], caller: Caller) -> Verdict:
        from herd.text.formats.guard import Verdict

        return await self._call(Moderate(tuple(messages), caller), Verdict)

    async def add_adapter(self, name: str, path: str) -> None:
        await self._call(AddAdapter(name, path), type(None))
        self._options = replace(self._options, adapters={**self._options.adapters, name: path})  # for the next process too

    async def remove_adapter(self, name: str) -> None:
        await self._call(RemoveAdapter(name), type(None))
        self._options = replace(self._options, adapters={key: value for key, value in self._options.adapters.items() if key != name})

    # asking

    def _ask(self, request: ChatRequest | CompletionRequest) -> StreamAnswer:
        self._number += 1
        number = self._number
        stream = Stream(request, self._loop, lambda: self._left(number))
        problem = self._why_not() or self._too_many(request.caller.priority)
        if problem is not None:
            stream.refuse(problem)
        else:
            self._streams[number] = stream
            self._waiting[request.caller.priority] += 1
            self._send_request(number, stream)
        return StreamAnswer(stream)

    def _why_not(self) -> HerdError | None:
        """Why nothing can be asked at the moment. A process that is on its way is waited for, unless the last ones died soon."""
        if self._is_closed:
            return EngineLost("The model was unloaded.")
        if self._is_up or not self._deaths.are_many:
            return None
        return EngineLost(f"The engine has died {self._deaths.young} times in a row soon after its start. It is started again.")

    def _too_many(self, priority: Priority) -> Busy | None:
        waiting = self._waiting[priority]
        if waiting < self._options.max_waiting:
            return None
        wait_s = min(max(self._interval_s * waiting / 2, SHORTEST_WAIT_S), LONGEST_WAIT_S)
        return Busy(f"{waiting} requests are waiting already. Ask again later.", retry_after_s=wait_s)

    def _send_request(self, number: int, stream: Stream) -> None:
        if not self._is_up or self._process is None:
            return  # it is sent when the process is there
        if stream.tries == TRIES:
            stream.lose(EngineLost(f"The engine died {TRIES} times before this request came to run."))
            self._forget(number)
            return
        stream.tries += 1
        try:
            self._process.write(to_bytes(Ask(number, stream.current_request())))
        except HerdError as problem:
            stream.refuse(problem)
            self._forget(number)

    async def _call(self, operation: Operation, kind: type[T]) -> T:
        problem = self._why_not()
        if problem is not None:
            raise problem
        self._number += 1
        number = self._number
        pending = self._pending[number] = _Pending(operation, self._loop.create_future())
        try:
            self._send_call(number, pending)
            found = await pending.result
        finally:
            del self._pending[number]
            if not pending.result.done() or pending.result.cancelled():
                self._tell_cancelled(number)
        if not isinstance(found, kind):
            raise EngineLost(f"The engine answered with {type(found).__name__}; expected {kind.__name__}.")
        return found

    def _send_call(self, number: int, pending: _Pending) -> None:
        if not self._is_up or self._process is None:
            return
        if pending.tries == TRIES:
            pending.result.set_exception(EngineLost(f"The engine died {TRIES} times at this request."))
            return
        pending.tries += 1
        self._process.write(to_bytes(Call(number, pending.operation)))

    def _left(self, number: int) -> None:
        if self._forget(number):
            self._tell_cancelled(number)

    def _tell_cancelled(self, number: int) -> None:
        if self._is_up and self._process is not None:
            self._process.write(to_bytes(Cancel(number)))

    def _forget(self, number: int) -> bool:
        """A request is over; whether it was there."""
        stream = self._streams.pop(number, None)
        if stream is None:
            return False
        if not stream.has_started:
            self._waiting[stream.request.caller.priority] -= 1
        return True

    # what the process says

    def _heard(self, frame: Frame) -> None:
        match frame:
            case Told():
                for number, text in frame.each():
                    self._said(number, (text,))
            case Said():
                for number, events in frame.events:
                    self._said(number, tuple(events))
            case Queued(number, prompt_tokens, seed):
                if (stream := self._streams.get(number)) is not None and stream.accepted is None:
                    stream.accept(Accepted(prompt_tokens=prompt_tokens, seed=seed))
            case Started(numbers):
                for number in numbers:
                    self._started(number)
            case Refused(number, problem):
                self._refused(number, problem.error)
            case Done(number, value):
                if (pending := self._pending.get(number)) is not None and not pending.result.done():
                    pending.result.set_result(value)
            case Beat(gauges, _):
                self._gauges = gauges
            case Ready(facts):
                self._up(facts)
            case Broken(problem):
                if not self._loaded.done():
                    self._loaded.set_exception(problem.error)

    def _said(self, number: int, events: tuple[Event, ...]) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        if not stream.has_started:
            self._started(number)
        is_read = stream.give(events)
        if stream.is_over:
            now = time.monotonic()
            self._interval_s = 0.9 * self._interval_s + 0.1 * min(now - self._ended_at, LONGEST_WAIT_S)
            self._ended_at = now
            self._forget(number)
            if not is_read:
                self._tell_cancelled(number)

    def _started(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None and not stream.has_started:
            stream.has_started = True
            self._waiting[stream.request.caller.priority] -= 1

    def _refused(self, number: int, problem: HerdError) -> None:
        pending = self._pending.get(number)
        if pending is not None and not pending.result.done():
            pending.result.set_exception(problem)
        stream = self._streams.get(number)
        if stream is not None:
            stream.refuse(problem)
            self._forget(number)

    def _up(self, facts: ModelFacts) -> None:
        self._facts, self._is_up = facts, True
        if not self._loaded.done():
            self._loaded.set_result(facts)
        for number, stream in list(self._streams.items()):
            self._send_request(number, stream)
        for number, pending in list(self._pending.items()):
            self._send_call(number, pending)

    # life and death

    def _spawn(self) -> None:
        options = self._options
        begin = Begin(options.model, options.load, options.adapters)
        self._process = self._start_process(begin, silence_s=options.silence_s, step_s=options.step_s, frame=self._heard, ended=self._died)

    def _spawn_again(self) -> None:
        try:
            self._spawn()
        except CapacityError as problem:
            self._wait(0.0, str(problem))

    def _died(self, process: Process) -> None:
        if self._is_closed or process is not self._process:
            return
        was_up, self._is_up, self._process = self._is_up, False, None
        self._gauges = Gauges()
        if not self._loaded.done():
            self._loaded.set_exception(EngineLost("The engine's process died while it loaded the model."))
            return
        lived_s = time.monotonic() - process.born_at
        self._lose_running(EngineLost("The engine's process died in the middle of the answer."))
        self._wait(lived_s if was_up else 0.0, f"The engine's process {process.process_id} has died after {lived_s:.1f} s.")

    def _wait(self, lived_s: float, what: str) -> None:
        """A process is gone, or never came: the next one starts after a while."""
        pause_s = self._deaths.note(lived_s)
        _LOG.warning("%s The next one starts in %.1f s.", what, pause_s)
        if self._deaths.are_many:
            self._lose_all(EngineLost("The engine's process dies again and again."))
        self._pause = self._loop.call_later(pause_s, self._spawn_again)

    def _lose_running(self, error: EngineLost) -> None:
        for number, stream in list(self._streams.items()):
            if stream.has_started:
                stream.lose(error)
                self._forget(number)

    def _lose_all(self, error: EngineLost) -> None:
        for number, stream in list(self._streams.items()):
            stream.lose(error)
            self._forget(number)
        for pending in self._pending.values():
            if not pending.result.done():
                pending.result.set_exception(error)
