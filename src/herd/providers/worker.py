"""An engine's process at work: frames come in, steps are driven, frames go out.

    reader thread    cuts the socket's bytes into frames; cancels at once
    two preparers    render, tokenise, decode pictures, so that steps of others do not wait for it
    step thread      drives the engine; one frame for each step, with the events of all requests; embeddings in the pauses between
    beat thread      tells four times a second that the process lives, and how busy it is

When the socket closes, whoever asked is gone: the loop ends. A reader that does not keep up makes the step thread wait in `send`; so
nothing is held for it here but what the system's socket holds.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, final

from herd.backends.base import Mortal
from herd.engine.request import Sequence
from herd.errors import UsageError
from herd.providers.answering import Asked
from herd.providers.base import ChatRequest, Event, Failed, Gauges, ModelFacts, Text
from herd.providers.carrying_out import carry_out
from herd.providers.embedding import Embeddings
from herd.providers.frames import (
    Ask,
    Beat,
    Call,
    Cancel,
    Done,
    Frame,
    FrameReader,
    Moderate,
    Problem,
    Ready,
    Refused,
    Said,
    Started,
)
from herd.providers.moderating import read_verdict, verdict_request
from herd.providers.telling import Open, Telling, timed

if TYPE_CHECKING:
    from herd.providers.local import LocalProvider

PREPARERS = 2
BEAT_S = 0.25
MEMORY_S = 2.0
"""How often the model's memory is added up; adapters come and go, and little else changes."""
IDLE_S = 0.05
RECEIVED_BYTES = 1 << 20
Tasks = queue.SimpleQueue["Callable[[], None] | None"]


@final
class Worker:
    """Answers over a socket until it closes. `run` is called once, by the thread that is to drive the engine."""

    def __init__(self, provider: LocalProvider, facts: ModelFacts, connection: socket.socket) -> None:
        self._provider = provider
        self._engine = provider.engine
        self._facts = facts
        self._connection = connection
        self._telling = Telling(self._engine, connection)
        self._tasks: Tasks = queue.SimpleQueue()
        self._held_tasks: Tasks = queue.SimpleQueue()  # whose grammars are compiled first: they wait for each other, and nobody for them
        self._embeddings = Embeddings(self._engine)
        self._gauges = Gauges()
        self._gauges_at = 0.0
        self._memory, self._memory_at = self._engine.memory(), time.monotonic()
        self._mortal = self._engine.backend if isinstance(self._engine.backend, Mortal) else None
        self._step_began: float | None = None
        self._began_s = 0.0

    def run(self) -> None:
        """Returns when the socket is closed and the step in progress is done. `EngineLost` when the backend can never answer again."""
        self._began_s = time.thread_time()
        self._engine.on_start = self._started
        self._telling.send(Ready(self._facts))
        threads = [threading.Thread(target=self._read, daemon=True), threading.Thread(target=self._beat, daemon=True)]
        threads += [threading.Thread(target=self._prepare, args=(self._tasks,), daemon=True) for _ in range(PREPARERS)]
        threads.append(threading.Thread(target=self._prepare, args=(self._held_tasks,), daemon=True))
        for thread in threads:
            thread.start()
        try:
            while not self._telling.is_closed:
                self._turn()
        finally:
            self.close()

    def close(self) -> None:
        self._telling.is_closed = True
        for _ in range(PREPARERS):
            self._tasks.put(None)
        self._held_tasks.put(None)
        self._embeddings.close()

    # the step thread

    def _turn(self) -> None:
        """One step, if there is anything to run, and a piece of an embedding, if any is wanted. What waits is not run when it could only
        fail: it is left to the next process."""
        if self._mortal is not None and (lost := self._mortal.lost) is not None:
            raise lost
        now = time.monotonic()
        if now - self._gauges_at >= BEAT_S:
            self._gauges, self._gauges_at = self._measured(), now
        has_work = self._engine.wait(0.0 if self._embeddings.is_wanted else IDLE_S)
        self._step_began = time.monotonic()
        if has_work:
            self._telling.step_told(self._engine.step())
        if self._embeddings.is_wanted:
            self._embeddings.advance(can_wait=has_work)
        elif not has_work:
            self._engine.tidy()
        self._step_began = None

    def _started(self, sequences: Iterable[Sequence]) -> None:
        numbers = [each.owner.number for each in sequences if isinstance(each.owner, Open)]
        if numbers:
            self._telling.send(Started(numbers))

    def _measured(self) -> Gauges:
        load, counts, now = self._engine.load, self._telling.counts, time.monotonic()
        if now - self._memory_at >= MEMORY_S:
            self._memory, self._memory_at = self._engine.memory(), now
        memory = self._memory
        return Gauges(
            waiting=load.waiting,
            running=load.running,
            free_pages=load.free_pages,
            cached_pages=load.cached_pages,
            used_pages=load.owned_pages,
            memory_bytes={"weights": memory.weights, "cache": memory.cache, "buffers": memory.buffers, **memory.other},
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            answer_tokens=counts.answer_tokens,
            steps=counts.steps,
            preempted=load.preempted,
            scheduling_s=max(0.0, time.thread_time() - load.model_s - self._began_s),
        )

    # the reader and the preparers

    def _read(self) -> None:
        reader = FrameReader()
        try:
            while data := self._connection.recv(RECEIVED_BYTES):
                for frame in reader.feed(data):
                    self._take(frame)
        except OSError:
            pass  # as good as the end of the stream
        finally:
            self._telling.is_closed = True
            self._engine.wake()

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Cancel):
            opened = self._telling.leave(frame.number)
            if opened is not None:
                self._cancel(opened)
            self._embeddings.cancel(frame.number)
        elif isinstance(frame, Ask):
            tasks = self._held_tasks if self._provider.may_be_held(frame.request) else self._tasks
            self._take_request(Open(frame.number, time.monotonic()), lambda: self._asked(frame), tasks)
        elif isinstance(frame, Call) and isinstance(frame.operation, Moderate):
            self._take_request(self._judged(frame.number), lambda: self._verdict_asked(frame), self._tasks)
        elif isinstance(frame, Call):
            self._tasks.put(lambda: carry_out(frame, self._provider, self._embeddings, self._telling.send))
        else:
            raise UsageError(f"A frame of kind {type(frame).__name__} goes the other way.")

    def _take_request(self, opened: Open, ask: Callable[[], Asked], tasks: Tasks) -> None:
        self._telling.enter(opened)
        tasks.put(lambda: self._queue(opened, ask))

    def _prepare(self, tasks: Tasks) -> None:
        while (task := tasks.get()) is not None and not self._telling.is_closed:
            task()

    def _queue(self, opened: Open, ask: Callable[[], Asked]) -> None:
        """Checks a request and submits it; what is wrong with it is told."""
        if opened.is_cancelled:
            return
        try:
            opened.asked = asked = ask()
            asked.answering.start()
            submit = self._engine.submit if asked.prompt_scores is None else self._engine.submit_scores
            sequence = submit(timed(opened, asked.request))
        except Exception as problem:
            self._telling.leave(opened.number)
            self._telling.send(Refused(opened.number, Problem.of(problem)))
            return
        opened.sequence = sequence
        if opened.was_left():
            self._engine.cancel(sequence)
            return
        self._telling.announce(opened, sequence)
        if asked.prompt_scores is None and (events := self._telling.ended_at_once(opened, sequence)):
            self._telling.send(Said([(opened.number, events)]))

    def _asked(self, frame: Ask) -> Asked:
        request = frame.request
        return self._provider.asked_chat(request) if isinstance(request, ChatRequest) else self._provider.asked_completion(request)

    def _judged(self, number: int) -> Open:
        def judge(events: list[Event]) -> None:
            from herd.text.formats.guard import Guard

            if isinstance(events[-1], Failed):
                raise events[-1].error
            guard = self._provider.chat_format
            assert isinstance(guard, Guard)
            tokens = [token for event in events if isinstance(event, Text) for token in event.tokens]
            self._telling.send(Done(number, read_verdict(self._facts.name, guard, tokens)))

        return Open(number, time.monotonic(), judge=judge)

    def _verdict_asked(self, frame: Call) -> Asked:
        assert isinstance(frame.operation, Moderate)
        if not self._facts.is_guard:
            raise UsageError(f"{self._facts.name} is no guard, so it gives no verdicts. Load a Llama Guard.", param="model")
        return self._provider.asked_chat(verdict_request(frame.operation.messages, frame.operation.caller))

    # any thread

    def _cancel(self, opened: Open) -> None:
        opened.is_cancelled = True
        if opened.sequence is not None:
            self._engine.cancel(opened.sequence)

    def _beat(self) -> None:
        while not self._telling.is_closed:
            began = self._step_began
            self._telling.send(Beat(self._gauges, 0.0 if began is None else time.monotonic() - began))
            time.sleep(BEAT_S)
