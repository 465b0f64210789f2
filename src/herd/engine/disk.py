"""Pages that outlive the memory, and the process: contents of full pages in a folder, found again by what they hold.

    cached --the engine is idle, or needs the page--> queue --writer thread--> folder/KEY.page
    folder/KEY.page --reader thread, asked for by a request that profits--> held --it is admitted--> a fresh page

Nobody waits for the disk but the request that profits, and that for `READ_S` at most. Pages are copied into a queue of bounded size
(what finds no room is forgotten, as it would be without a disk) and written by a thread of their own; another reads a request's pages
before it is queued. A disk that does not answer is set aside: prompts are computed until it does, and the log says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import final

from herd.engine.page_files import WARN_EVERY_S, PageFiles
from herd.records import dataclass

READ_S = 2.0
"""So long may a request's pages be read before it goes on with those it has."""
HANGS_S = 1.0
"""A page that is not read after so long is not waited for, nor are others until it is."""
MEMORY_BYTES = 768 << 20
"""What pages on their way to and from the disk may take, where there is enough."""
_LOG = logging.getLogger("herd.engine.disk")


@dataclass(slots=True, eq=False)
class _Reading:
    """What one request wants. `is_over`: the reader does no more for it; `is_left`: nobody waits for it."""

    names: list[str]
    found: list[bytes] = field(default_factory=list)
    is_over: bool = False
    is_left: bool = False


@final
class DiskPages:
    """The way of one engine's pages to and from its files. Safe to use from several threads.

    memory_bytes  for copies of pages that wait to be written, a third, and that were read for requests which wait for their turn; each
                  has room for one page at least
    """

    def __init__(self, files: PageFiles, memory_bytes: int = MEMORY_BYTES) -> None:
        self._files = files
        size = files.file_bytes
        self._most_queued = max(size, memory_bytes // 3)
        self._most_held = max(size, memory_bytes - self._most_queued)
        self._lock = threading.RLock()  # a lost engine may be collected, and this closed, in a thread of its own that holds the lock
        self._changed = threading.Condition(self._lock)
        self._queue: deque[tuple[str, bytes]] = deque()
        self._queued: dict[str, int] = {}
        self._readings: deque[_Reading] = deque()
        self._queued_bytes = self._held_bytes = 0
        self._page_began: float | None = None  # when the reader turned to the page that it reads
        self._is_aside = False
        self._warned_at = float("-inf")
        self._is_closed = False
        self._writer = self._started(self._write_all, "pages to the disk")
        self._reader: threading.Thread | None = None

    @property
    def num_bytes(self) -> int:
        """Of the folder's pages."""
        return self._files.num_bytes

    @property
    def memory_bytes(self) -> int:
        """What copies of pages take at most."""
        return self._most_queued + self._most_held

    def has(self, key: bytes) -> bool:
        """Whether a page is there, or on its way."""
        name = self._files.name(key)
        return self._files.has(name) or name in self._queued

    @property
    def has_room(self) -> bool:
        """Whether `keep` would take a page now."""
        return not self._is_closed and not self._is_aside and self._queued_bytes + self._files.file_bytes <= self._most_queued

    def keep(self, key: bytes, contents: bytes) -> bool:
        """Has a page written, soon. False: there is too much to be written already, or the disk does not answer."""
        name = self._files.name(key)
        if self._files.has(name):
            return True
        with self._lock:
            if self._is_closed or name in self._queued:
                return True
            if not self.has_room:
                return False
            self._queue.append((name, contents))
            self._queued[name] = self._files.file_bytes
            self._queued_bytes += self._files.file_bytes
            self._changed.notify_all()
        return True

    def read(self, keys: Sequence[bytes]) -> list[bytes]:
        """The contents of the first of `keys`, as many as are there and time and memory allow. Give them back with `forget`."""
        names = []
        for key in keys:
            if not self._files.has(name := self._files.name(key)):
                break
            names.append(name)
        with self._lock:
            names = names[: (self._most_held - self._held_bytes) // self._files.file_bytes]
            if not names or self._is_closed or self._hangs():
                return []
            self._held_bytes += len(names) * self._files.file_bytes
            reading = _Reading(names)
            self._readings.append(reading)
            if self._reader is None:
                self._reader = self._started(self._read_all, "pages from the disk")
            self._changed.notify_all()
            end = time.monotonic() + READ_S
            while not (reading.is_over or self._hangs()) and (left := end - time.monotonic()) > 0:
                self._changed.wait_for(lambda: reading.is_over or self._is_aside, min(left, HANGS_S / 4))
            reading.is_left = True
            self._held_bytes -= (len(names) - len(reading.found)) * self._files.file_bytes
            return reading.found

    def forget(self, num_pages: int) -> None:
        """So many pages that `read` gave are no longer held."""
        with self._lock:
            self._held_bytes -= num_pages * self._files.file_bytes

    def flush(self, timeout_s: float) -> None:
        """Waits until all that was kept is written, for so long at most."""
        with self._lock:
            self._changed.wait_for(lambda: not self._queued, timeout_s)

    def close(self, timeout_s: float = 1.0) -> None:
        """Writes what still waits, for so long at most. Idempotent."""
        if threading.current_thread() in (self._writer, self._reader):  # the last that knows of it: it ends with what is queued
            with self._lock:
                self._is_closed = True
                self._changed.notify_all()
            return
        self.flush(timeout_s)
        with self._lock:
            self._is_closed = True
            for name, _ in self._queue:
                self._queued_bytes -= self._queued.pop(name)
            self._queue.clear()
            self._changed.notify_all()
        end = time.monotonic() + timeout_s
        for thread in (self._writer, self._reader):
            if thread is not None:
                thread.join(max(0.0, end - time.monotonic()))

    def _hangs(self) -> bool:
        """Whether the disk does not answer; then it is set aside until it does. Needs the lock."""
        began = self._page_began
        if began is not None and time.monotonic() - began > HANGS_S and not self._is_aside:
            self._is_aside = True
            self._changed.notify_all()
            if time.monotonic() - self._warned_at > WARN_EVERY_S:
                self._warned_at = time.monotonic()
                _LOG.warning("The cache in %s does not answer. Prompts are computed until it does.", self._files.folder)
        return self._is_aside

    # the threads

    def _started(self, work: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def _write_all(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                if not self._queue:
                    return
                name, contents = self._queue.popleft()
            try:
                self._files.write(name, contents)
            finally:
                with self._lock:
                    self._queued_bytes -= self._queued.pop(name)
                    self._changed.notify_all()

    def _read_all(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._readings or self._is_closed)
                if not self._readings:
                    return
                reading = self._readings.popleft()
            try:
                self._read(reading)
            finally:
                with self._lock:
                    self._page_began, reading.is_over = None, True
                    self._changed.notify_all()

    def _read(self, reading: _Reading) -> None:
        """Reads one page after the other until one is missing, or nobody waits for them any more."""
        for name in reading.names:
            with self._lock:
                if reading.is_left:
                    return
                self._page_began = time.monotonic()
            contents = self._files.read(name)
            with self._lock:
                self._is_aside = False
                if contents is None or reading.is_left:
                    return
                reading.found.append(contents)
