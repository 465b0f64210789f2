"""A file that is looked at through memory: opened once, size known up front, never written.

A mapped page that disappears (the file is cut while we run, a network volume goes away) kills a process with SIGBUS and
cannot be turned into an error from Python. So the size is taken before anything is read, every range is checked against it,
and `check_unchanged` tells before a long read whether somebody has cut or replaced the file meanwhile.
"""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path

from herd.errors import FileProblem
from herd.files.reader import visible


class MappedFile:
    """The bytes of one file as a read-only `view` of `size` bytes. `name` is how messages call it."""

    def __init__(self, path: Path) -> None:
        self.path: Path | None = path
        self.name = visible(path.name)
        try:
            self._descriptor: int | None = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError as problem:
            raise FileProblem(f"{path}: cannot be opened: {problem.strerror}.") from problem
        try:
            self._map, self.size = _map(self._descriptor, path)
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = None
            raise
        self.view = memoryview(self._map) if self._map is not None else memoryview(b"")

    @classmethod
    def of_bytes(cls, data: bytes, name: str) -> MappedFile:
        """The same interface over bytes in memory."""
        self = cls.__new__(cls)
        self.path, self.name, self.size, self.view = None, name, len(data), memoryview(data)
        self._descriptor, self._map = None, None
        return self

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def identity(self) -> tuple[int, int, int, int]:
        """Size, time of the last change in ns, inode and device: another value means another file, or other contents."""
        if self._descriptor is None:
            return self.size, 0, 0, 0
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev

    def check_unchanged(self) -> None:
        """`FileProblem` if the file has another size than when it was opened."""
        if self._descriptor is not None and (size := os.fstat(self._descriptor).st_size) != self.size:
            raise FileProblem(f"{self.path}: had {self.size} bytes when it was opened and has {size} now. Do not change it while in use.")

    def drop_pages(self, offset: int, length: int) -> None:
        """Give the memory of the whole pages inside this range back; reading them again fetches them from the file."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = min(offset + length, self.size)
        last = end if end == self.size else end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def read_ahead(self, offset: int, length: int) -> None:
        """Ask the system to fetch this range before somebody looks at it, where it can. Does not wait for the bytes."""
        if self._descriptor is not None and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice only
                os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Let go of the file. Memory that leaves still look at stays until they are gone."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self.view = memoryview(b"")
        self._map = None


def _map(descriptor: int, path: Path) -> tuple[mmap.mmap | None, int]:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise FileProblem(f"{path}: is not a regular file.")
    if status.st_size == 0:
        return None, 0
    try:
        return mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ), status.st_size
    except (OSError, ValueError) as problem:
        raise FileProblem(f"{path}: cannot be mapped into memory ({problem}).") from problem
