"""What outlives a request: the storage, work that goes on without its client, and the sweep of what is over.

The storage is opened when something is first kept, or at the start if there is something from before: then batches go on where they
were. One server at a time works on the batches of a folder; a second one on the same folder keeps and finds, and leaves them alone
until the first has gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.errors import CapacityError, HerdError
from herd.files import home
from herd.server.errors import ApiError
from herd.server.stored import Store

if TYPE_CHECKING:
    from herd.server.settings import Settings

SWEEP_EVERY_S = 600.0
FILE_NAME = "kept.sqlite3"
DAY_S = 86_400
_LOG = logging.getLogger("herd.server")


class Keeping:
    """The storage of a server, opened when it is needed, and its tasks, by owner and id."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: Store | None = None
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._on_open: Callable[[], Awaitable[None]] | None = None

    @property
    def path(self) -> Path:
        folder = self._settings.data_folder
        return (home() / "server" if folder is None else folder) / FILE_NAME

    @property
    def store(self) -> Store:
        """The storage. `ApiError` 503 where it cannot be used; the log says why."""
        if self._store is None:
            try:
                self._store = Store(self.path, owner_bytes=self._settings.max_kept_bytes)
            except HerdError as problem:
                _LOG.error("%s", problem)
                raise ApiError(503, "This server cannot keep anything now; its log says why.", retry_after_s=10.0) from None
        return self._store

    def expires(self, *, days: int | None = None) -> int:
        """When what is kept now goes, in seconds since 1970; by default as answers do."""
        return int(time.time()) + (self._settings.keep_days if days is None else days) * DAY_S

    async def start(self, resume: Callable[[], Awaitable[None]]) -> None:
        """Sweeps from now on. `resume` is called at once if something was kept before."""
        self._sweeping = asyncio.create_task(self._sweep())
        if self.path.exists():
            try:
                self.store  # noqa: B018  (opens it)
                await resume()
            except (HerdError, ApiError) as problem:
                _LOG.error("what was kept before cannot be gone on with: %s", problem)

    async def stop(self) -> None:
        """Ends the tasks, and the storage when what waits is written."""
        tasks = [*self._tasks.values(), *([self._sweeping] if self._sweeping is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
            self._store = None

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

    def is_running(self, owner: str, key: str) -> bool:
        return (owner, key) in self._tasks

    def _forget(self, owner: str, key: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get((owner, key)) is task:
            del self._tasks[(owner, key)]
        if not task.cancelled() and (problem := task.exception()) is not None:
            _LOG.error("work in the background failed", exc_info=problem)

    async def _sweep(self) -> None:
        while True:
            if self._store is not None:
                with suppress(CapacityError):
                    while await self._store.write(lambda tables: tables.remove_expired(), erase=True):
                        await asyncio.sleep(0)
            await asyncio.sleep(SWEEP_EVERY_S)
