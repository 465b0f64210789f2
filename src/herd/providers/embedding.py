"""Embeddings beside answers: a few tokens of a text between two steps, so that nobody waits long for somebody else's.

A text's vector is the mean over its tokens of the hidden states after the last norm, divided by its length: what `Model.embed` gives.
Callers take turns; the texts of one caller are computed in their order. A text runs alone, on pages of its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from dataclasses import field
from typing import TYPE_CHECKING, final

from herd.backends.base import Watch
from herd.engine.engine import Engine
from herd.errors import Busy, CapacityError
from herd.providers.frames import Done, Frame, Problem, Refused, Vectors
from herd.records import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_WAITING = 1024
"""Jobs that wait at the same time; one more is refused."""


@dataclass(slots=True, eq=False)
class _Job:
    number: int
    texts: list[list[int]]
    send: Callable[[Frame], None]
    vectors: list[bytes] = field(default_factory=list)
    steps: Generator[None, None, NDArray[np.float32]] | None = None
    is_cancelled: bool = False


@final
class Embeddings:
    """What is to be embedded. Jobs are added by any thread, and computed by the one that drives the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._of: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._jobs: dict[int, _Job] = {}

    @property
    def is_wanted(self) -> bool:
        return bool(self._of)

    def add(self, number: int, caller: str, texts: list[list[int]], send: Callable[[Frame], None]) -> None:
        """Queues texts. `UsageError` and `CapacityError` for one that can never be embedded, `Busy` for a full queue."""
        for text in texts:
            self._engine.check_tokens(text)
        with self._lock:
            if len(self._jobs) >= MAX_WAITING:
                raise Busy(f"{len(self._jobs)} requests for embeddings are waiting already. Ask again later.")
            job = self._jobs[number] = _Job(number, texts, send)
            self._of.setdefault(caller, deque()).append(job)

    def cancel(self, number: int) -> None:
        """Nobody waits for this job, if there is one."""
        job = self._jobs.get(number)
        if job is not None:
            job.is_cancelled = True

    def advance(self, *, can_wait: bool) -> None:
        """A few tokens more of the next caller's text. can_wait: others run, so that pages will come back if there are too few now."""
        with self._lock:
            caller, jobs = next(iter(self._of.items()))
            self._of.move_to_end(caller)
        job = jobs[0]
        try:
            is_over = job.is_cancelled or self._advanced(job)
        except CapacityError as problem:
            if can_wait or self._others_hold_pages(job):
                job.steps = None
                return
            job.send(Refused(job.number, Problem.of(problem)))
            is_over = True
        except Exception as problem:
            job.send(Refused(job.number, Problem.of(problem)))
            is_over = True
        if is_over:
            self._end(caller, jobs, job)

    def close(self) -> None:
        for job in list(self._jobs.values()):
            if job.steps is not None:
                job.steps.close()

    def _advanced(self, job: _Job) -> bool:
        if job.steps is None:
            job.steps = embedded(self._engine, job.texts[len(job.vectors)])
        try:
            next(job.steps)
        except StopIteration as end:
            job.vectors.append(end.value.tobytes())
            job.steps = None
        if len(job.vectors) < len(job.texts):
            return False
        job.send(Done(job.number, Vectors(job.vectors, [len(text) for text in job.texts])))
        return True

    def _others_hold_pages(self, job: _Job) -> bool:
        return any(other.steps is not None for other in self._jobs.values() if other is not job)

    def _end(self, caller: str, jobs: deque[_Job], job: _Job) -> None:
        if job.steps is not None:
            job.steps.close()
        with self._lock:
            jobs.popleft()
            del self._jobs[job.number]
            if not jobs:
                del self._of[caller]


def embedded(engine: Engine, tokens: list[int]) -> Generator[None, None, NDArray[np.float32]]:
    """Pauses after every few tokens; returns the text's vector [D]."""
    import numpy as np

    rows = []
    for _, result in engine.examine(tokens, lambda positions: Watch(frozenset(("final",))), lets_others=True):
        rows.append(result.values["final"])
        yield
    mean = np.concatenate(rows).mean(axis=0)
    vector: NDArray[np.float32] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return vector
