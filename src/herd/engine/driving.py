"""Who may drive a backend: one thread at a time, and what it can do with it besides steps.

One lock guards the books and is free while the backend computes. Whoever wants the backend for itself waits until nobody drives it.
Cancellations never wait: one that finds the lock taken leaves an order, which is carried out before the lock is given away.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as List
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from herd.backends.base import Backend, Placed, Plan, Span, StepResult, Watch
from herd.engine import contents
from herd.engine.adapters import Adapters
from herd.engine.admission import check_tokens
from herd.engine.parts import Limits
from herd.engine.request import Progress, Sequence, Status
from herd.engine.scheduler import Scheduler
from herd.errors import CapacityError, UsageError
from herd.sampling.stop import StopReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Driven:
    """The books, the lock around them, and the backend for one at a time. `Engine` is made of it."""

    def __init__(self, backend: Backend, limits: Limits, context_length: int) -> None:
        self.backend = backend
        self.limits = limits
        self.context_length = context_length
        self._scheduler = Scheduler(limits)
        self._adapters = Adapters(backend)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._orders: deque[Sequence] = deque()
        self._in_step: frozenset[int] = frozenset()
        self._driver: int | None = None  # the thread that drives a step
        self._is_closed = False
        self._value_names: tuple[str, ...] | None = None

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence, wherever it is; nothing happens if it has ended. Never waits (see above)."""
        if sequence.status is not Status.GONE:
            self._orders.append(sequence)
            self._settle()

    def examine(
        self, tokens: List[int], watch: Callable[[range], Watch], *, pictures: tuple[Placed, ...] = (), lets_others: bool = False
    ) -> Generator[tuple[range, StepResult], None, None]:
        """Runs a text alone, a few tokens at a time, and gives each step's positions with its logits and what `watch(positions)`
        asked to read. Nothing is taken from the cache or left in it; other requests wait, until the end or, with `lets_others`, until
        the reader has the next few tokens. `CapacityError` if too many pages are in use."""
        ids = check_tokens(tokens, self.backend.num_embeddings, self.context_length, self.limits.whole_tokens)
        size = min(self.limits.max_step_tokens, self.limits.max_step_outputs)
        whole, each = (nullcontext, self._driving) if lets_others else (self._driving, nullcontext)
        with whole(), self._owned(self.limits.whole_pages_for(len(ids))) as pages:
            for start in range(0, len(ids), size):
                positions = range(start, min(start + size, len(ids)))
                span = Span(start, ids[start : positions.stop], pages, len(positions), pictures=pictures)
                plan = Plan((span,), want_logits=True, watch=watch(positions))
                with each():
                    result = self.backend.step(plan)
                yield positions, result

    @contextmanager
    def cached(self, tokens: List[int]) -> Iterator[tuple[int, Iterator[bytes]]]:
        """How many of `tokens`, from the first on, the cache holds, and the contents of their pages. Other requests wait."""
        with self._alone(0):
            with self._exclusive():
                pages, count = contents.find(self._scheduler.tables, tokens)
            yield count, map(self.backend.read_page, pages)

    def num_cached_pages(self, num_tokens: int) -> int:
        """How many pages `cached` gives of so many tokens."""
        return len(self._scheduler.tables.places(num_tokens))

    def put_cached(self, tokens: List[int], pages: List[memoryview]) -> None:
        """Makes the cache hold `tokens`, from contents that `cached` gave. `CapacityError` without room for them. Others wait."""
        tables = self._scheduler.tables
        with self._alone(self.num_cached_pages(len(tokens))) as own:
            contents.put(self.backend, own, pages)
            with self._exclusive():
                contents.name(self._scheduler.pages, tables, tokens, own)

    @property
    def value_names(self) -> tuple[str, ...]:
        """As `Backend.value_names`, which may run the model: asked once, when nobody else runs it."""
        if self._value_names is None:
            with self._alone(0):
                self._value_names = self.backend.value_names()
        return self._value_names

    def classify(self, tokens: List[int]) -> NDArray[np.float32]:
        """What a classifier says of a whole text: one number per label. Other requests wait. `UsageError` for ids that it lacks."""
        with self._alone(0):
            return self.backend.classify(tokens)

    def check(self) -> None:
        """Fails (AssertionError) if the books are wrong. For tests."""
        with self._exclusive():
            self._scheduler.check()

    @contextmanager
    def _alone(self, num_pages: int) -> Iterator[list[int]]:
        """Pages for somebody who drives the backend by hand, while nobody else does."""
        with self._driving(), self._owned(num_pages) as pages:
            yield pages

    @contextmanager
    def _driving(self) -> Iterator[None]:
        """Nobody else drives the backend meanwhile."""
        with self._exclusive():
            while self._driver is not None:
                self._wait()
            if self._is_closed:
                raise UsageError("The engine is closed.")
            self._driver = threading.get_ident()
        try:
            yield
        finally:
            with self._exclusive():
                self._driver = None
                self._settle_adapters()
                self._changed.notify_all()

    @contextmanager
    def _owned(self, num_pages: int) -> Iterator[list[int]]:
        """Pages of one's own, outside of all sequences. `CapacityError` if there are not so many."""
        with self._exclusive():
            if self._is_closed:
                raise UsageError("The engine is closed.")
            books = self._scheduler.pages
            if num_pages > books.num_available:
                raise CapacityError(
                    f"{num_pages} pages of cache are needed and {books.num_available} are not in use. Wait until other requests have ended."
                )
            pages = [page for _ in range(num_pages) if (page := books.take()) is not None]
        try:
            yield pages
        finally:
            with self._exclusive():
                for page in pages:
                    self._scheduler.pages.release(page)

    def _settle_adapters(self) -> None:
        if not self._adapters.is_settled:
            self._adapters.settle({each.adapter for each in (*self._scheduler.running, *self._scheduler.waiting)})

    def _wait(self) -> None:
        """Waits for news while another thread drives. `UsageError` for the one that does, which would wait for itself."""
        if self._driver == threading.get_ident():
            raise UsageError("This model is in the middle of a step, which asks it for something else. Ask before or after the step.")
        self._changed.wait()

    def _end(self, sequence: Sequence, reason: StopReason) -> None:
        if sequence.status is not Status.GONE:
            sequence.stop_reason = reason
            self._scheduler.finish(sequence)
            tell(sequence, Progress(sequence=sequence, stop_reason=reason))

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Holds the lock. Cancellations that found it taken are carried out before it is given away, or right after."""
        try:
            with self._lock:
                try:
                    yield
                finally:
                    self._carry_out()
        finally:
            self._settle()

    def _lock_again(self) -> None:
        """Takes the lock even if Ctrl-C arrives while waiting for it; the interrupt goes on once it is held."""
        interrupt: KeyboardInterrupt | None = None
        while not self._lock.acquire(blocking=False):
            try:
                self._lock.acquire()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _settle(self) -> None:
        """Carries out cancellations unless somebody holds the lock: then they will."""
        if self._orders and self._lock.acquire(blocking=False):
            try:
                self._carry_out()
            finally:
                self._lock.release()

    def _carry_out(self) -> None:
        """Cancels whom it can; those in the step in progress have to wait for its end. Needs the lock."""
        for _ in range(len(self._orders)):
            sequence = self._orders.popleft()
            if sequence.number in self._in_step:
                self._orders.append(sequence)
            elif sequence.status is not Status.GONE:
                self._end(sequence, StopReason.CANCELLED)
                self._changed.notify_all()


def tell(sequence: Sequence, progress: Progress) -> Progress:
    """Leaves the progress where whoever waits for it looks."""
    if sequence.news is not None:
        sequence.news.append(progress)
    return progress
