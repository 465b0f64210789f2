"""Many requests, one model: turns requests into steps of a backend and steps into progress of each request.

    submit -> Sequence -> [ a step (stepping) ] ... -> Progress ... -> the last Progress

There is no thread of its own: whoever waits for progress drives the next step, for everybody (`run`, `score`); or one caller
drives by hand (`step`). One lock guards the books and is free while the backend computes, so that requests can arrive and be
cancelled during a step. `cancel` never waits, as it may be called by the garbage collector in the middle of anything: the
pages return before it does, or, if they are being written by the step in progress, at that step's end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping
from collections.abc import Sequence as List
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.backends.base import Backend, MemoryUse, Placed, group_page_bytes
from herd.engine.adapters import digest_of
from herd.engine.admission import check_request, check_tokens, new_answer, new_scores
from herd.engine.disk import DiskPages
from herd.engine.lasting import Lasting
from herd.engine.memory import available_bytes, default_num_pages
from herd.engine.parts import Limits
from herd.engine.request import Load, Progress, Purpose, Request, Sequence
from herd.engine.stepping import Stepping
from herd.errors import Busy, CapacityError, UsageError
from herd.sampling.stop import StopReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.engine.speculative import Speculation
    from herd.models.weights import Matrix, Update


class Engine(Stepping):
    """Runs requests on one backend, several at a time. Safe to use from several threads."""

    def __init__(
        self,
        backend: Backend,
        *,
        context_length: int,
        stop_ids: Collection[int] = (),
        max_batch: int = 32,
        num_pages: int | None = None,
        max_step_tokens: int = 512,
        max_step_outputs: int = 64,
        speculation: Speculation | None = None,
        max_waiting: int | None = None,
        disk: DiskPages | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_step_tokens` and `max_step_outputs` are those of the backend's options. `num_pages` None: enough for one full
        context, or what fits into a quarter of the available memory if that is less. `CapacityError` if not even that fits.
        `speculation`: drafts tokens that a step tries besides; answers stay the same. `max_waiting`: so many requests may wait, and so
        many of low priority besides; None: any number. `disk`: where pages go when the memory is full. `clock` gives seconds that only
        grow."""
        limits = _limits(backend, context_length, num_pages, (max_batch, max_step_tokens, max_step_outputs))
        super().__init__(backend, limits, context_length, speculation, clock)
        self.stop_ids = frozenset(stop_ids)
        self.page_bytes = group_page_bytes(backend)
        self._next_number = 0
        self._max_waiting = max_waiting
        if disk is not None:
            self._scheduler.lasting = Lasting(backend, disk, self._scheduler.pages)
        self.is_updated = False  # whether weights were replaced since they were loaded

    @property
    def cache_bytes(self) -> int:
        """Bytes of all pages, of which a backend may touch only those that were used."""
        return self.limits.num_pages * self.page_bytes

    @property
    def max_length(self) -> int:
        """The longest sequence, prompt and answer together: the context, or less if the pages hold less."""
        return min(self.context_length, self.limits.cache_tokens)

    def memory(self) -> MemoryUse:
        """Bytes that are held, by what for: the backend's, and what pages on their way to and from the disk may take."""
        held, lasting = self.backend.memory(), self._scheduler.lasting
        return held if lasting is None else replace(held, other={**held.other, "disk_buffers": lasting.memory_bytes})

    @property
    def load(self) -> Load:
        with self._exclusive():
            pages = self._scheduler.pages
            counts = pages.num_free, pages.num_owned, pages.num_cached
            scheduler = self._scheduler
            return Load(
                *counts,
                waiting=len(scheduler.waiting),
                running=len(scheduler.running),
                preempted=scheduler.num_preempted,
                model_s=self._timed.model_s,
            )

    def validate(self, request: Request) -> None:
        """`UsageError` or `CapacityError` for a request that can never be honoured; says nothing about how busy the engine is."""
        self._validated(request)

    def check_tokens(self, tokens: List[int]) -> None:
        """`UsageError` or `CapacityError` for a text that can never be run."""
        check_tokens(tokens, self.backend.num_embeddings, self.context_length, self.limits.cache_tokens)

    def submit(self, request: Request) -> Sequence:
        """Queues a request for `step`. Errors as `validate`, and `Busy` for a full queue. A request without room for a token is
        finished at once."""
        return self._submit(request, None)

    def submit_scores(self, request: Request) -> Sequence:
        """Queues the prompt of a request for `step`, which gives the logits at all of its positions. Errors as `submit`."""
        tokens = check_tokens(request.tokens, self.backend.num_embeddings, self.context_length, self.limits.cache_tokens)
        return self._enter(new_scores(self._salted(request), tokens, None), request.deadline_s)

    def step(self) -> list[Progress]:
        """Drives one step (after the one in progress, if another thread drives). Empty if nobody chose a token or ended."""
        with self._exclusive():
            while self._driver is not None:
                self._wait()
            return self._advance() or []

    def wait(self, timeout_s: float) -> bool:
        """Waits until there is a request in the engine, for so long at most; whether there is one."""
        with self._exclusive():
            if not self._has_work and not self._is_closed:
                self._changed.wait(timeout_s)
            return self._has_work

    def wake(self) -> None:
        """Ends a `wait` in progress."""
        with self._exclusive():
            self._changed.notify_all()

    @property
    def _has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def run(self, request: Request) -> Generator[Progress, None, None]:
        """Submits at the first `next`, then yields progress up to the last one. Closing early cancels. Errors at the call."""
        self.validate(request)
        return self._follow(lambda news: self._submit(request, news))

    def score(
        self, tokens: List[int], *, salt: bytes = b"", pictures: tuple[Placed, ...] = (), adapter: str | None = None
    ) -> Generator[NDArray[np.float32], None, None]:
        """Logits rows [R, V] for all positions of `tokens`, in order, at most `max_step_outputs` rows at a time.

        Nothing is computed ahead of the reader. Raises what went wrong; closing early gives the pages back.
        """
        ids = check_tokens(tokens, self.backend.num_embeddings, self.context_length, self.limits.cache_tokens)
        return self._score(self._salted(Request(tokens=ids, salt=salt, pictures=pictures, adapter=adapter)), ids)

    def update(self, weights: Mapping[str, Matrix]) -> None:
        """Replaces weights by name and forgets what was cached under the old ones. `UsageError` while requests run."""
        with self._exclusive():
            busy = len(self._scheduler.running) + len(self._scheduler.waiting)
            if busy or self._driver is not None:
                raise UsageError(f"{busy} requests are in the engine; weights can be replaced when there are none.")
            self._scheduler.pages.forget_cached()
            if self._scheduler.lasting is not None:  # what it holds was computed by other weights
                self._scheduler.lasting.leave()
                self._scheduler.lasting = None
            self.is_updated = True
            self.backend.update(weights)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The LoRA adapters that requests may name."""
        with self._exclusive():
            return self._adapters.names

    def add_adapter(self, name: str, updates: Mapping[str, Update]) -> None:
        """Gives requests an adapter to name, between two steps; those that run do not notice. Errors as `Backend.add_adapter`."""
        digest = digest_of(updates)  # takes a moment, which nobody else waits for
        with self._driving():
            self._adapters.add(name, updates, digest)

    def remove_adapter(self, name: str) -> None:
        """Refuses the adapter to new requests; it is gone when the last of those that have it has ended. `UsageError` for one that is
        not there."""
        with self._exclusive():
            self._adapters.remove(name)
            if self._driver is None:
                self._settle_adapters()

    def close(self) -> None:
        """Cancels everything and closes the backend. Idempotent."""
        with self._exclusive():
            while self._driver is not None:
                self._wait()
            for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                self._end(sequence, StopReason.CANCELLED)
            if self._scheduler.lasting is not None and not self._is_closed:
                self._scheduler.lasting.close()
            self._is_closed = True
            self._changed.notify_all()
        self.backend.close()
        if self._speculation is not None:
            self._speculation.close()

    def _submit(self, request: Request, news: deque[Progress] | None) -> Sequence:
        tokens = self._validated(request)
        room, vocab_size = self.max_length - len(tokens), self.backend.vocab_size
        return self._enter(new_answer(self._salted(request), tokens, room, self.stop_ids, vocab_size, news), request.deadline_s)

    def _salted(self, request: Request) -> Request:
        """With the salt that pages have under the request's adapter. `UsageError` for an adapter that is not there."""
        with self._exclusive():
            return replace(request, salt=self._adapters.salt(request.adapter, request.salt))

    def _validated(self, request: Request) -> list[int]:
        with self._exclusive():
            self._adapters.check(request.adapter)
        return check_request(request, self.backend, self.context_length, self.limits.cache_tokens)

    def tidy(self) -> None:
        """Has a few pages written to the disk, for a later engine. For pauses; nothing happens in a step, or without a disk."""
        with self._exclusive():
            if self._scheduler.lasting is not None and self._driver is None and not self._is_closed:
                self._scheduler.lasting.tidy()

    def _enter(self, sequence: Sequence, deadline_s: float | None = None) -> Sequence:
        if (lasting := self._scheduler.lasting) is not None and sequence.purpose is Purpose.ANSWER:
            with self._exclusive():
                missing = self._scheduler.missing(sequence, lasting.has)
            sequence.stored = dict(zip(missing, lasting.read(list(missing.values())), strict=False))
        try:
            return self._enqueue(sequence, deadline_s)
        except BaseException:
            if lasting is not None:
                lasting.forget(len(sequence.stored))
            raise

    def _enqueue(self, sequence: Sequence, deadline_s: float | None) -> Sequence:
        with self._exclusive():
            if self._is_closed:
                raise UsageError("The engine is closed.")
            self._adapters.check(sequence.adapter)
            self._refuse_if_full(sequence)
            sequence.number = self._next_number
            self._next_number += 1
            self._scheduler.add(sequence)
            if sequence.purpose is Purpose.ANSWER and sequence.max_length == sequence.length:
                self._end(sequence, StopReason.LENGTH)
            elif deadline_s is not None:
                self._deadlines.add(sequence, deadline_s)
            self._changed.notify_all()
        return sequence

    def _refuse_if_full(self, sequence: Sequence) -> None:
        """`Busy` when as many wait as may. Requests of low priority take no other's place."""
        if self._max_waiting is None or len(self._scheduler.waiting) < self._max_waiting:
            return
        waiting = sum(1 for each in self._scheduler.waiting if each.is_low == sequence.is_low)
        if waiting >= self._max_waiting:
            raise Busy(f"{waiting} requests are waiting already. Ask again later.", retry_after_s=self._pace.wait_s(waiting))

    def _score(self, request: Request, tokens: list[int]) -> Generator[NDArray[np.float32], None, None]:
        for progress in self._follow(lambda news: self._enter(new_scores(request, tokens, news))):
            if progress.error is not None:
                raise progress.error
            if progress.stop_reason is StopReason.CANCELLED:
                raise UsageError("The scoring was cancelled before all rows were read.")
            if progress.logits_RV is not None:
                yield progress.logits_RV

    def _follow(self, enter: Callable[[deque[Progress]], Sequence]) -> Generator[Progress, None, None]:
        sequence = enter(deque())
        try:
            while True:
                progress = self._next(sequence)
                yield progress
                if progress.is_last:
                    return
        finally:
            self.cancel(sequence)

    def _next(self, sequence: Sequence) -> Progress:
        """The sequence's next progress; drives steps while there is none and nobody else does."""
        assert sequence.news is not None
        with self._exclusive():
            while not sequence.news:
                if self._driver is not None:
                    self._wait()
                elif self._advance() is None:
                    raise AssertionError("a sequence waits, and no step can be planned")
            progress = sequence.news.popleft()
            sequence.is_held = bool(sequence.news) and sequence.purpose is Purpose.SCORES
            return progress


def _limits(backend: Backend, context_length: int, num_pages: int | None, step: tuple[int, int, int]) -> Limits:
    """The limits, checked, and pages allocated. step: sequences, tokens and outputs at most. Errors as `Engine`."""
    max_batch, max_step_tokens, max_step_outputs = step
    if context_length < 1:
        raise UsageError(f"context_length is {context_length}; it must be at least 1.")
    if num_pages is not None and num_pages < 1:
        raise UsageError(f"num_pages is {num_pages}; it must be at least 1.")
    most = min(max_step_tokens, max_step_outputs)
    if not 1 <= max_batch <= most:
        raise UsageError(f"max_batch is {max_batch}; it must be from 1 to {most}, as each sequence needs a token and an output.")
    groups = backend.groups
    wanted = groups.pages_for(context_length, max_step_tokens)
    pages = num_pages or default_num_pages(wanted, groups.count, group_page_bytes(backend), available_bytes())
    if pages < groups.count:
        raise CapacityError(f"{pages} pages of cache are too few: {groups.page_tokens} tokens of this model take {groups.count}.")
    backend.allocate(pages, by_group=True)
    return Limits(
        num_pages=pages,
        groups=groups,
        max_batch=max_batch,
        max_step_tokens=max_step_tokens,
        max_step_outputs=max_step_outputs,
    )
