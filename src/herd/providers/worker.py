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
from dataclasses import field, replace
from typing import TYPE_CHECKING, final

from herd.engine.request import Progress, Request, Sequence
from herd.errors import HerdError, UsageError
from herd.providers.answering import Asked
from herd.providers.base import ChatRequest, Event, Failed, Finished, Gauges, ModelFacts, Text
from herd.providers.embedding import Embeddings
from herd.providers.frames import (
    AddAdapter,
    Ask,
    Beat,
    Call,
    Cancel,
    Count,
    Decode,
    Done,
    Embed,
    Encode,
    Frame,
    FrameReader,
    Moderate,
    Problem,
    Queued,
    Ready,
    Refused,
    RemoveAdapter,
    Said,
    Started,
    Told,
    to_bytes,
)
from herd.providers.moderating import read_verdict, verdict_request
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.providers.local import LocalProvider

PREPARERS = 2
BEAT_S = 0.25
MEMORY_S = 2.0
"""How often the model's memory is added up; adapters come and go, and little else changes."""
IDLE_S = 0.05
RECEIVED_BYTES = 1 << 20
Tasks = queue.SimpleQueue["Callable[[], None] | None"]


@dataclass(slots=True, eq=False)
class _Open:
    """A request on its way through this process. said_at: the step in which more than a token was last said of it. judge: for a verdict,
    which reads all of its events at the end."""

    number: int
    arrived: float
    asked: Asked | None = None
    sequence: Sequence | None = None
    is_cancelled: bool = False
    is_announced: bool = False
    said_at: int = -1
    judge: Callable[[list[Event]], None] | None = None
    events: list[Event] = field(default_factory=list)

    def plain(self, progress: Progress) -> tuple[str, bytes] | None:
        """What a token says, if that is all there is to tell of it."""
        return None if self.asked is None or self.judge is not None else self.asked.answering.plain(progress)

    def was_left(self) -> bool:
        """Whether it was cancelled by now; another thread may do that at any time."""
        return self.is_cancelled

    def announce(self) -> bool:
        """Whether it still had to be announced; by the thread that writes."""
        was_announced, self.is_announced = self.is_announced, True
        return not was_announced


@final
class Worker:
    """Answers over a socket until it closes. `run` is called once, by the thread that is to drive the engine."""

    def __init__(self, provider: LocalProvider, facts: ModelFacts, connection: socket.socket) -> None:
        self._provider = provider
        self._engine = provider.engine
        self._facts = facts
        self._connection = connection
        self._writing = threading.Lock()
        self._open: dict[int, _Open] = {}
        self._tasks: Tasks = queue.SimpleQueue()
        self._held_tasks: Tasks = queue.SimpleQueue()  # whose grammars are compiled first: they wait for each other, and nobody for them
        self._embeddings = Embeddings(self._engine)
        self._is_closed = False
        self._gauges = Gauges()
        self._gauges_at = 0.0
        self._memory, self._memory_at = self._engine.memory(), time.monotonic()
        self._step_began: float | None = None
        self._prompt_tokens = self._cached_tokens = self._answer_tokens = self._steps = 0
        self._began_s = 0.0

    def run(self) -> None:
        """Returns when the socket is closed and the step in progress is done."""
        self._began_s = time.thread_time()
        self._engine.on_start = self._started
        self._send(Ready(self._facts))
        threads = [threading.Thread(target=self._read, daemon=True), threading.Thread(target=self._beat, daemon=True)]
        threads += [threading.Thread(target=self._prepare, args=(self._tasks,), daemon=True) for _ in range(PREPARERS)]
        threads.append(threading.Thread(target=self._prepare, args=(self._held_tasks,), daemon=True))
        for thread in threads:
            thread.start()
        try:
            while not self._is_closed:
                self._turn()
        finally:
            self.close()

    def close(self) -> None:
        self._is_closed = True
        for _ in range(PREPARERS):
            self._tasks.put(None)
        self._held_tasks.put(None)
        self._embeddings.close()

    # the step thread

    def _turn(self) -> None:
        """One step, if there is anything to run, and a piece of an embedding, if any is wanted."""
        now = time.monotonic()
        if now - self._gauges_at >= BEAT_S:
            self._gauges, self._gauges_at = self._measured(), now
        has_work = self._engine.wait(0.0 if self._embeddings.is_wanted else IDLE_S)
        self._step_began = time.monotonic()
        if has_work:
            self._tell(self._engine.step())
        if self._embeddings.is_wanted:
            self._embeddings.advance(can_wait=has_work)
        elif not has_work:
            self._engine.tidy()
        self._step_began = None

    def _tell(self, progress: list[Progress]) -> None:
        self._steps += 1
        told: list[tuple[int, str, int, bytes, float]] = []
        said: list[tuple[int, list[Event]]] = []
        for each in progress:
            opened = each.sequence.owner
            if not isinstance(opened, _Open) or opened.is_cancelled:
                continue
            # `Told` goes out first: what a step says of an answer after something else has to stay after it.
            plain = None if opened.said_at == self._steps else opened.plain(each)
            if plain is not None:
                told.append((opened.number, plain[0], each.token, plain[1], each.logprob))  # type: ignore[arg-type]  # it has a token
                continue
            opened.said_at = self._steps
            try:
                events = self._events(opened, each)
            except Exception as problem:
                events = [Failed(problem if isinstance(problem, HerdError) else Problem.of(problem).error)]
                self._engine.cancel(each.sequence)
                self._forget(opened)
            if opened.judge is not None:
                opened.events += events
                if opened.number not in self._open:
                    self._judge(opened)
            elif events:
                self._announce(opened, each.sequence)
                said.append((opened.number, events))
        if told:
            self._answer_tokens += len(told)
            self._send(Told(*zip(*told, strict=True)))
        if said:
            self._send(Said(said))

    def _events(self, opened: _Open, progress: Progress) -> list[Event]:
        assert opened.asked is not None
        if progress.logits_RV is not None:
            return self._scored(opened, opened.asked, progress)
        answering, sequence = opened.asked.answering, progress.sequence
        if answering.is_over:
            return []
        if progress.token is not None:
            if sequence.length == sequence.num_prompt + 1:
                self._prompt_tokens += sequence.num_prompt
                self._cached_tokens += sequence.cached_tokens or 0
            self._answer_tokens += 1
        events = answering.push(progress)
        if events and isinstance(events[-1], Finished | Failed):
            if not progress.is_last:
                self._engine.cancel(sequence)
            self._forget(opened)
        return events

    def _scored(self, opened: _Open, asked: Asked, progress: Progress) -> list[Event]:
        """Rows of the prompt; after the last ones the answer itself is queued."""
        assert asked.prompt_scores is not None and progress.logits_RV is not None
        asked.prompt_scores.push(progress.logits_RV)
        if not progress.is_last:
            return []
        opened.sequence = self._engine.submit(self._timed(opened, asked.request))
        events: list[Event] = [asked.prompt_scores.event]
        if opened.is_cancelled:
            self._engine.cancel(opened.sequence)
        return events + self._ended_at_once(opened, opened.sequence)

    def _ended_at_once(self, opened: _Open, sequence: Sequence) -> list[Event]:
        """The end of an answer that has no room for a token, of which no step tells."""
        if sequence.stop_reason is None or sequence.length > sequence.num_prompt or opened.is_cancelled:
            return []
        assert opened.asked is not None
        self._forget(opened)
        return opened.asked.answering.push(Progress(sequence=sequence, stop_reason=sequence.stop_reason))

    def _judge(self, opened: _Open) -> None:
        assert opened.judge is not None
        try:
            opened.judge(opened.events)
        except HerdError as problem:
            self._send(Refused(opened.number, Problem.of(problem)))

    def _started(self, sequences: Iterable[Sequence]) -> None:
        numbers = [each.owner.number for each in sequences if isinstance(each.owner, _Open)]
        if numbers:
            self._send(Started(numbers))

    def _measured(self) -> Gauges:
        load, now = self._engine.load, time.monotonic()
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
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            answer_tokens=self._answer_tokens,
            steps=self._steps,
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
            self._is_closed = True
            self._engine.wake()

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Cancel):
            opened = self._open.pop(frame.number, None)
            if opened is not None:
                self._cancel(opened)
            self._embeddings.cancel(frame.number)
        elif isinstance(frame, Ask):
            tasks = self._held_tasks if self._provider.may_be_held(frame.request) else self._tasks
            self._take_request(_Open(frame.number, time.monotonic()), lambda: self._asked(frame), tasks)
        elif isinstance(frame, Call) and isinstance(frame.operation, Moderate):
            self._take_request(self._judged(frame.number), lambda: self._verdict_asked(frame), self._tasks)
        elif isinstance(frame, Call):
            self._tasks.put(lambda: self._carry_out(frame))
        else:
            raise UsageError(f"A frame of kind {type(frame).__name__} goes the other way.")

    def _take_request(self, opened: _Open, ask: Callable[[], Asked], tasks: Tasks) -> None:
        self._open[opened.number] = opened
        tasks.put(lambda: self._queue(opened, ask))

    def _prepare(self, tasks: Tasks) -> None:
        while (task := tasks.get()) is not None and not self._is_closed:
            task()

    def _queue(self, opened: _Open, ask: Callable[[], Asked]) -> None:
        """Checks a request and submits it; what is wrong with it is told."""
        if opened.is_cancelled:
            return
        try:
            opened.asked = asked = ask()
            asked.answering.start()
            submit = self._engine.submit if asked.prompt_scores is None else self._engine.submit_scores
            sequence = submit(self._timed(opened, asked.request))
        except Exception as problem:
            self._forget(opened)
            self._send(Refused(opened.number, Problem.of(problem)))
            return
        opened.sequence = sequence
        if opened.was_left():
            self._engine.cancel(sequence)
            return
        self._announce(opened, sequence)
        if asked.prompt_scores is None and (events := self._ended_at_once(opened, sequence)):
            self._send(Said([(opened.number, events)]))

    def _timed(self, opened: _Open, request: Request) -> Request:
        """The request with what is left of its time; its sequence knows whose it is."""
        left = None if request.deadline_s is None else max(0.0, request.deadline_s - (time.monotonic() - opened.arrived))
        return replace(request, deadline_s=left, owner=opened)

    def _asked(self, frame: Ask) -> Asked:
        request = frame.request
        return self._provider.asked_chat(request) if isinstance(request, ChatRequest) else self._provider.asked_completion(request)

    def _judged(self, number: int) -> _Open:
        def judge(events: list[Event]) -> None:
            from herd.text.formats.guard import Guard

            if isinstance(events[-1], Failed):
                raise events[-1].error
            guard = self._provider.chat_format
            assert isinstance(guard, Guard)
            tokens = [token for event in events if isinstance(event, Text) for token in event.tokens]
            self._send(Done(number, read_verdict(self._facts.name, guard, tokens)))

        return _Open(number, time.monotonic(), judge=judge)

    def _verdict_asked(self, frame: Call) -> Asked:
        assert isinstance(frame.operation, Moderate)
        if not self._facts.is_guard:
            raise UsageError(f"{self._facts.name} is no guard, so it gives no verdicts. Load a Llama Guard.", param="model")
        return self._provider.asked_chat(verdict_request(frame.operation.messages, frame.operation.caller))

    def _carry_out(self, frame: Call) -> None:
        try:
            match frame.operation:
                case Count(request):
                    self._send(Done(frame.number, len(self._provider.prompt(request)[0])))
                case Encode(text, bos, specials):
                    self._send(Done(frame.number, self._provider.tokenizer.encode(text, bos=bos, specials=specials)))
                case Decode(ids):
                    self._send(Done(frame.number, self._decoded(list(ids))))
                case Embed():
                    self._embed(frame.number, frame.operation)
                case AddAdapter(name, path):
                    self._provider.add_adapter(name, path)
                    self._send(Done(frame.number, None))
                case RemoveAdapter(name):
                    self._provider.remove_adapter(name)
                    self._send(Done(frame.number, None))
        except Exception as problem:
            self._send(Refused(frame.number, Problem.of(problem)))

    def _decoded(self, ids: list[int]) -> str:
        tokenizer = self._provider.tokenizer
        for token in ids:
            if not 0 <= token < tokenizer.vocab_size:
                raise UsageError(f"There is no token {token}; ids go from 0 to {tokenizer.vocab_size - 1}.", param="tokens")
        return tokenizer.decode(ids, skip_specials=False)

    def _embed(self, number: int, asked: Embed) -> None:
        if not asked.inputs:
            raise UsageError("There are no texts to embed; give at least one.", param="input")
        texts = [self._provider.encode(each) if isinstance(each, str) else list(each) for each in asked.inputs]
        self._embeddings.add(number, asked.caller.name, texts, lambda frame: self._send(frame))
        self._engine.wake()

    # any thread

    def _cancel(self, opened: _Open) -> None:
        opened.is_cancelled = True
        if opened.sequence is not None:
            self._engine.cancel(opened.sequence)

    def _forget(self, opened: _Open) -> None:
        self._open.pop(opened.number, None)

    def _announce(self, opened: _Open, sequence: Sequence) -> None:
        """Tells once that a request is queued, before anything else is told of it."""
        if opened.is_announced or opened.judge is not None:
            return
        with self._writing:
            if opened.announce():
                self._write(Queued(opened.number, sequence.num_prompt, sequence.seed))

    def _send(self, frame: Frame) -> None:
        with self._writing:
            self._write(frame)

    def _write(self, frame: Frame) -> None:
        try:
            self._connection.sendall(to_bytes(frame))
        except OSError:
            self._is_closed = True

    def _beat(self) -> None:
        while not self._is_closed:
            began = self._step_began
            self._send(Beat(self._gauges, 0.0 if began is None else time.monotonic() - began))
            time.sleep(BEAT_S)
