"""A long piece of work whose file can be killed at any moment and goes on where it was.

.NAME.herd/key      what is being made of what; another key begins anew
.NAME.herd/FILE     results of earlier stages, each whole or absent
.NAME.herd/data     the file so far
.NAME.herd/done     how many bytes of it are known to be on the disk, and which rows of which tensor those end with
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from herd.errors import UsageError
from herd.files import atomic_write, file_lock
from herd.files.writing import cannot_write, sync_folder

SAVED_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """So many bytes are done: all tensors before `tensor`, and its rows before `row`."""

    num_bytes: int = 0
    tensor: int = 0
    row: int = 0


class Work:
    """An unfinished file. Use within `working`."""

    def __init__(self, destination: Path, folder: Path) -> None:
        self.folder = folder
        self._destination = destination
        self._file: BinaryIO | None = None
        self._saved_at = time.monotonic()

    def stage(self, name: str) -> Path:
        """Where the result of an earlier stage is, or is to be written with `atomic_write`."""
        return self.folder / name

    def begin(self, head: bytes) -> Place:
        """Opens the file; where to go on. The file begins with `head`, whose end is the place of row 0 of tensor 0."""
        place = self._saved()
        data = self.folder / "data"
        self._file = data.open("r+b" if data.exists() else "w+b")
        if place.num_bytes < len(head) or self._file.read(len(head)) != head or self._file.seek(0, os.SEEK_END) < place.num_bytes:
            place = Place(len(head))
            self._file.truncate(0)
            self._file.seek(0)
            self._file.write(head)
        self._file.truncate(place.num_bytes)
        self._file.seek(place.num_bytes)
        return place

    def _saved(self) -> Place:
        try:
            value = json.loads((self.folder / "done").read_bytes())
            return Place(*map(int, value))
        except (OSError, ValueError, TypeError):
            return Place()

    def write(self, data: bytes | memoryview, tensor: int, row: int) -> None:
        """The next bytes, after which everything before this row of this tensor is there."""
        assert self._file is not None
        self._file.write(data)
        if time.monotonic() - self._saved_at > SAVED_EVERY_S:
            self.save(tensor, row)

    def save(self, tensor: int, row: int) -> None:
        """Everything so far survives from here on, power failures too."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        with atomic_write(self.folder / "done") as file:
            file.write(json.dumps([self._file.tell(), tensor, row]).encode())
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Syncs the file and gives it its name."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._destination.exists():
            raise UsageError(f"{self._destination} was made by somebody else meanwhile; nothing is overwritten.")
        os.rename(self.folder / "data", self._destination)
        sync_folder(self._destination.parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        _lock_of(self._destination).unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextmanager
def working(destination: Path, key: str) -> Iterator[Work]:
    """The folder beside `destination` where work on it lies, for one process at a time. It stays when the work is interrupted."""
    folder = destination.with_name(f".{destination.name}.herd")
    try:
        with file_lock(_lock_of(destination)):
            if destination.exists():
                raise UsageError(f"{destination} exists already; nothing is overwritten. Choose another name, or remove it.")
            if not _has_key(folder, key):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                with atomic_write(folder / "key") as file:
                    file.write(key.encode())
            work = Work(destination, folder)
            try:
                yield work
            finally:
                work.close()
    except OSError as problem:
        raise cannot_write(destination, problem) from problem


def _lock_of(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.lock")


def _has_key(folder: Path, key: str) -> bool:
    try:
        return (folder / "key").read_text() == key
    except (OSError, UnicodeDecodeError):
        return False
