"""What a server keeps, in one SQLite file: stored answers, files, batches. What, for how long and for whom: docs/decisions/0018.

    await store.write(work)     `work(tables)` in a transaction of the one thread that writes; returns when it is on the disk
    await store.read(work)      `work(tables)` on what was committed last, beside the writer

Many writers that wait are one transaction, so a hundred small writes cost one sync of the disk. A write that fails changes nothing
and leaves the others of its transaction whole. What is deleted is overwritten, in the log too. No text of what is kept is ever in an
error or a log.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from herd.errors import CapacityError, FileProblem, HerdError, lack
from herd.server.dates import now
from herd.server.tables import SCHEMA, SCHEMA_VERSION, Tables

T = TypeVar("T")
Work = Callable[[Tables], T]

WAITING_MAX = 1024
"""Writes that may wait; more are refused, so that a slow disk fills no memory."""
TOGETHER_MAX = 64
BUSY_S = 5.0
"""How long a write waits for another program that holds the file."""
DEFAULT_OWNER_BYTES = 1 << 30


class Store:
    """The file and its threads. `close` waits for what was asked for."""

    def __init__(self, path: Path, *, owner_bytes: int = DEFAULT_OWNER_BYTES, clock: Callable[[], float] = now) -> None:
        self.path = path
        self._owner_bytes = owner_bytes
        self._clock = clock
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._queue: queue.Queue[tuple[Work[Any], Future[Any], bool] | None] = queue.Queue(WAITING_MAX)
        self._writer = self._open()
        self._reading = ThreadPoolExecutor(2, thread_name_prefix="herd-stored-read")
        self._writing = threading.Thread(target=self._write_all, name="herd-stored-write", daemon=True)
        try:
            self._writing.start()
        except RuntimeError as problem:
            self._writer.close()
            raise lack(problem) or problem from None

    async def write(self, work: Work[T], *, erase: bool = False) -> T:
        """`erase`: what the work deletes is gone from the disk, the log of changes included, when this returns."""
        done: Future[T] = Future()
        try:
            self._queue.put_nowait((work, done, erase))
        except queue.Full:
            raise CapacityError("The disk does not keep up with what is to be stored. Try again later.") from None
        return await asyncio.wrap_future(done)

    async def read(self, work: Work[T]) -> T:
        try:
            reading = asyncio.get_running_loop().run_in_executor(self._reading, self._read, work)
        except RuntimeError as problem:  # the thread that reads is only started now
            raise lack(problem) or problem from None
        return await reading

    def close(self) -> None:
        """Ends the threads when what waits is written. Closing twice does nothing more."""
        if self._writing.is_alive():
            self._queue.put(None)
            self._writing.join()
        self._reading.shutdown()
        for connection in self._readers:
            connection.close()
        self._readers.clear()
        self._writer.close()

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            connection = self._connect()
            prepare(connection, self.path)
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                Tables(connection, self._clock, self._owner_bytes).remove_orphans()
            return connection
        except sqlite3.Error as problem:
            raise FileProblem(
                f"{self.path}: cannot be used to keep answers and files ({_reason(problem)}). Move it away, or choose another folder."
            ) from None
        except OSError as problem:
            raise FileProblem(f"{self.path}: cannot be written: {problem.strerror}. Choose another folder.") from None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        for setting in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {setting}")
        return connection

    def _read(self, work: Work[T]) -> T:
        connection = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = self._local.connection = self._connect()
                connection.execute("PRAGMA query_only = ON")
                self._readers.append(connection)
            connection.execute("BEGIN")
            try:
                return work(Tables(connection, self._clock, self._owner_bytes))
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.Error as problem:
            raise _cannot(problem) from None

    def _write_all(self) -> None:
        """The writer's thread: takes what waits, writes it as one transaction, tells each how it went."""
        while (first := self._queue.get()) is not None:
            together = [first]
            is_over = False
            while len(together) < TOGETHER_MAX and not self._queue.empty():
                item = self._queue.get_nowait()
                if item is None:
                    is_over = True
                    break
                together.append(item)
            self._write_together(together)
            if is_over:
                return

    def _write_together(self, together: list[tuple[Work[Any], Future[Any], bool]]) -> None:
        asked = [(work, done, erase) for work, done, erase in together if done.set_running_or_notify_cancel()]
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for work, done, _ in asked:
                outcomes.append((done, *self._one(work)))
            self._writer.execute("COMMIT")
            if any(erase for _, _, erase in asked):
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except BaseException as problem:
            self._roll_back()
            outcomes = [(done, None, problem) for _, done, _ in asked]
        for done, value, error in outcomes:
            if error is None:
                done.set_result(value)
            else:
                done.set_exception(_cannot(error) if isinstance(error, sqlite3.Error) else error)

    def _one(self, work: Work[Any]) -> tuple[Any, BaseException | None]:
        """One piece of work; its own changes are undone if it fails, unless the whole transaction has to be."""
        self._writer.execute("SAVEPOINT one")
        try:
            value = work(Tables(self._writer, self._clock, self._owner_bytes))
        except sqlite3.OperationalError:
            raise
        except Exception as problem:
            self._writer.execute("ROLLBACK TO one")
            self._writer.execute("RELEASE one")
            return None, problem
        self._writer.execute("RELEASE one")
        return value, None

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            try:
                self._writer.execute("ROLLBACK")
            except sqlite3.Error:
                self._writer.close()
                self._writer = self._connect()


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Checks the file, and makes its tables if it is new. `FileProblem` for one that another version of herd wrote, or a damaged one."""
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise FileProblem(f"{path}: lies where SQLite cannot keep a log beside it. Choose a folder on a local disk.")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise FileProblem(
            f"{path}: has version {version} of the tables; this herd knows up to {SCHEMA_VERSION}. Use the newer herd, or another folder."
        )
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise FileProblem(f"{path}: is damaged. Move it away; a new one is made.")
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _reason(problem: BaseException) -> str:
    return str(getattr(problem, "sqlite_errorname", None) or type(problem).__name__)


def _cannot(problem: BaseException) -> HerdError:
    """SQLite's own words stay here: they may name a path."""
    return CapacityError(f"What this server keeps cannot be read or written now ({_reason(problem)}). Try again later.")
