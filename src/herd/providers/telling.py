"""What an engine's process tells of its requests: each step's events in one frame, and each request's beginning and end.

    step -> Progress of each --> Told (a token of many) + Said (events of some) --> the socket

Everything that goes out goes through here, a whole frame at a time. A reader that does not keep up makes who writes wait.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import field, replace
from typing import final

from herd.engine.engine import Engine
from herd.engine.request import Progress, Request, Sequence
from herd.errors import HerdError
from herd.providers.answering import Asked
from herd.providers.base import Event, Failed, Finished
from herd.providers.frames import Frame, Problem, Queued, Refused, Said, Told, to_bytes
from herd.records import dataclass


@dataclass(slots=True, eq=False)
class Open:
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


@dataclass(slots=True)
class Counts:
    """Tokens and steps since the start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    steps: int = 0


@final
class Telling:
    """The requests on their way, and the socket that hears of them. `step_told` is called by the thread that drives the engine."""

    def __init__(self, engine: Engine, connection: socket.socket) -> None:
        self._engine = engine
        self._connection = connection
        self._writing = threading.Lock()
        self._open: dict[int, Open] = {}
        self.counts = Counts()
        self.is_closed = False

    def enter(self, opened: Open) -> None:
        self._open[opened.number] = opened

    def leave(self, number: int) -> Open | None:
        """Takes a request out; None where it is over."""
        return self._open.pop(number, None)

    def step_told(self, progress: list[Progress]) -> None:
        """Tells what a step did for each."""
        self.counts.steps += 1
        told: list[tuple[int, str, int, bytes, float]] = []
        said: list[tuple[int, list[Event]]] = []
        for each in progress:
            opened = each.sequence.owner
            if not isinstance(opened, Open) or opened.is_cancelled:
                continue
            # `Told` goes out first: what a step says of an answer after something else has to stay after it.
            plain = None if opened.said_at == self.counts.steps else opened.plain(each)
            if plain is not None:
                told.append((opened.number, plain[0], each.token, plain[1], each.logprob))  # type: ignore[arg-type]  # it has a token
                continue
            opened.said_at = self.counts.steps
            try:
                events = self._events(opened, each)
            except Exception as problem:
                events = [Failed(problem if isinstance(problem, HerdError) else Problem.of(problem).error)]
                self._engine.cancel(each.sequence)
                self.leave(opened.number)
            if opened.judge is not None:
                opened.events += events
                if opened.number not in self._open:
                    self._judge(opened)
            elif events:
                self.announce(opened, each.sequence)
                said.append((opened.number, events))
        if told:
            self.counts.answer_tokens += len(told)
            self.send(Told(*zip(*told, strict=True)))
        if said:
            self.send(Said(said))

    def _events(self, opened: Open, progress: Progress) -> list[Event]:
        assert opened.asked is not None
        if progress.logits_RV is not None:
            return self._scored(opened, opened.asked, progress)
        answering, sequence = opened.asked.answering, progress.sequence
        if answering.is_over:
            return []
        if progress.token is not None:
            if sequence.length == sequence.num_prompt + 1:
                self.counts.prompt_tokens += sequence.num_prompt
                self.counts.cached_tokens += sequence.cached_tokens or 0
            self.counts.answer_tokens += 1
        events = answering.push(progress)
        if events and isinstance(events[-1], Finished | Failed):
            if not progress.is_last:
                self._engine.cancel(sequence)
            self.leave(opened.number)
        return events

    def _scored(self, opened: Open, asked: Asked, progress: Progress) -> list[Event]:
        """Rows of the prompt; after the last ones the answer itself is queued."""
        assert asked.prompt_scores is not None and progress.logits_RV is not None
        asked.prompt_scores.push(progress.logits_RV)
        if not progress.is_last:
            return []
        opened.sequence = self._engine.submit(timed(opened, asked.request))
        events: list[Event] = [asked.prompt_scores.event]
        if opened.is_cancelled:
            self._engine.cancel(opened.sequence)
        return events + self.ended_at_once(opened, opened.sequence)

    def ended_at_once(self, opened: Open, sequence: Sequence) -> list[Event]:
        """The end of an answer that has no room for a token, of which no step tells."""
        if sequence.stop_reason is None or sequence.length > sequence.num_prompt or opened.is_cancelled:
            return []
        assert opened.asked is not None
        self.leave(opened.number)
        return opened.asked.answering.push(Progress(sequence=sequence, stop_reason=sequence.stop_reason))

    def _judge(self, opened: Open) -> None:
        assert opened.judge is not None
        try:
            opened.judge(opened.events)
        except HerdError as problem:
            self.send(Refused(opened.number, Problem.of(problem)))

    def announce(self, opened: Open, sequence: Sequence) -> None:
        """Tells once that a request is queued, before anything else is told of it."""
        if opened.is_announced or opened.judge is not None:
            return
        with self._writing:
            if opened.announce():
                self._write(Queued(opened.number, sequence.num_prompt, sequence.seed))

    def send(self, frame: Frame) -> None:
        with self._writing:
            self._write(frame)

    def _write(self, frame: Frame) -> None:
        try:
            self._connection.sendall(to_bytes(frame))
        except OSError:
            self.is_closed = True


def timed(opened: Open, request: Request) -> Request:
    """The request with what is left of its time; its sequence knows whose it is."""
    left = None if request.deadline_s is None else max(0.0, request.deadline_s - (time.monotonic() - opened.arrived))
    return replace(request, deadline_s=left, owner=opened)
