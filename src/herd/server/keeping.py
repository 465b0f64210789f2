"""What outlives a request: the storage, work that goes on without its client, and the sweep of what is over.

The storage is opened when something is first kept, or at the start if there is something from before: then batches go on where they
were. One server at a time works on the batches of a folder: the one that holds its lock. Another one on the same folder keeps and finds,
and leaves the work alone until the first has gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.errors import CapacityError, FileProblem, HerdError
from herd.files import home, take_lock
from herd.server.dates import now
from herd.server.errors import ApiError
from herd.server.stored import Store

if TYPE_CHECKING:
    from herd.server.settings import Settings

SWEEP_EVERY_S = 600.0
LOOK_EVERY_S = 5.0
FILE_NAME = "kept.sqlite3"
DAY_S = 86_400
_LOG = logging.getLogger("herd.server")


class Keeping:
    """The storage of a server, opened when it is needed, and its tasks, by owner and id."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: Store | None = None
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._reserved: set[tuple[str, str]] = set()
        self._beside: list[asyncio.Task[None]] = []
        self._lock: int | None = None
        self.batch_places = asyncio.Semaphore(settings.max_batch_lines)
        self.tuning_place = asyncio.Semaphore(1)
        self.taught: set[str] = set()  # jobs of fine-tuning whose results the models have

    @property
    def path(self) -> Path:
        folder = self._settings.data_folder
        return (home() / "server" if folder is None else folder) / FILE_NAME

    @property
    def store(self) -> Store:
        """The storage. `ApiError` 503 where it cannot be used; the log says why."""
        if self._store is None:
            try:
                self._try_to_own()
                self._store = Store(self.path, owner_bytes=self._settings.max_kept_bytes)
            except HerdError as problem:
                _LOG.error("%s", problem)
                raise ApiError(503, "This server cannot keep anything now; its log says why.", retry_after_s=10.0) from None
        return self._store

    def expires(self, *, days: int | None = None) -> int:
        """When what is kept now goes, in seconds since 1970; by default as answers do."""
        return now() + (self._settings.keep_days if days is None else days) * DAY_S

    @property
    def is_owner(self) -> bool:
        """Whether this server is the one that works on what the folder has to be worked on."""
        if self._lock is None and self._store is not None:
            self._try_to_own()
        return self._lock is not None

    def _try_to_own(self) -> None:
        """Takes the folder's lock if it is free. It is taken before the file is made, so that who makes the file owns the folder."""
        if self._lock is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as problem:
                raise FileProblem(f"{self.path.parent}: cannot be made: {problem.strerror}. Choose another folder.") from None
            self._lock = take_lock(self.path.with_name("working"))

    async def start(self, resume: Callable[[], Awaitable[None]]) -> None:
        """Opens what was kept before, which is checked first and may take seconds. From then on sweeps, and calls `resume` every few
        seconds while this server is the folder's owner."""
        if self.path.exists():
            with suppress(ApiError, RuntimeError):  # without a thread it is opened a moment later, by who looks for work
                await asyncio.to_thread(lambda: self.store)
        self._beside = [asyncio.create_task(self._sweep()), asyncio.create_task(self._look_for_work(resume))]

    async def stop(self) -> None:
        """Ends the tasks, and the storage when what waits is written."""
        tasks = [*self._tasks.values(), *self._beside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._store is not None:
            self._store.close()
            self._store = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def spawn(self, owner: str, key: str, work: Coroutine[Any, Any, None]) -> None:
        """Work that goes on without its client. `Keeping` holds it until it is done; a failure of it is logged."""
        task = asyncio.create_task(work)
        self._tasks[(owner, key)] = task
        task.add_done_callback(lambda done: self._forget(owner, key, done))

    async def cancel(self, owner: str, key: str) -> bool:
        """Ends a task and waits until it has; False if there is none."""
        task = self._tasks.get((owner, key))
        if task is None:
            return False
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
        return True

    @contextmanager
    def reserved(self, owner: str, key: str) -> Iterator[None]:
        """Counts as running for the length of the block, in which the work is begun."""
        self._reserved.add((owner, key))
        try:
            yield
        finally:
            self._reserved.discard((owner, key))

    def is_running(self, owner: str, key: str) -> bool:
        return (owner, key) in self._tasks or (owner, key) in self._reserved

    def _forget(self, owner: str, key: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get((owner, key)) is task:
            del self._tasks[(owner, key)]
        if not task.cancelled() and (problem := task.exception()) is not None:
            _LOG.error("work in the background failed", exc_info=problem)

    async def _look_for_work(self, resume: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                if self._store is not None or self.path.exists():
                    self.store  # noqa: B018  (opens it)
                    if self.is_owner:
                        await resume()
            except (HerdError, ApiError) as problem:
                _LOG.error("what was kept before cannot be gone on with: %s", problem)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _sweep(self) -> None:
        while True:
            if self._store is not None:
                with suppress(CapacityError):
                    while await self._store.write(lambda tables: tables.remove_expired(), erase=True):
                        await asyncio.sleep(0)
            await asyncio.sleep(SWEEP_EVERY_S)
