"""Files that are either whole or absent, and one writer at a time."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from herd.errors import CapacityError, FileProblem, HerdError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a quota or a file can hold no more."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is complete and on the disk.

    The bytes go to a temporary name in the same folder; at the end of the block the file is synced, renamed over `path`, and the
    folder is synced. Whatever goes wrong before leaves `path` as it was and removes the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as problem:
        raise cannot_write(path, problem) from problem


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write into. At the end of the block everything in it takes the place of what `folder` holds under the same name;
    until then, and whatever goes wrong, `folder` holds what it held."""
    beside = folder / f".{folder.name}.{os.getpid()}-{os.urandom(4).hex()}.part"
    try:
        beside.mkdir()
        try:
            yield beside
            for new in sorted(beside.iterdir()):
                _put(new, folder / new.name)
            sync_folder(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as problem:
        raise cannot_write(folder, problem) from problem


def _put(new: Path, place: Path) -> None:
    """Moves a file or folder to a name that another may have. A folder's name is nobody's for a moment: systems exchange files only."""
    if not new.is_dir() and not place.is_dir():
        os.replace(new, place)
        return
    old = new.with_name(f"{new.name}.old")
    is_there = place.exists() or place.is_symlink()
    if is_there:
        os.replace(place, old)
    try:
        os.replace(new, place)
    except OSError:
        if is_there:
            os.replace(old, place)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure, where the system lets folders be synced."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def cannot_write(path: Path, problem: OSError) -> HerdError:
    """The error for a failed write to `path`: a full disk or quota is a matter of capacity, the rest of the file."""
    if problem.errno in FULL:
        return CapacityError(f"{path}: cannot be written: {problem.strerror}. Free some space, or choose another folder.")
    return FileProblem(f"{path}: cannot be written: {problem.strerror}.")


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock between processes on the file `path`, made if absent and left in place.

    Waits while another process holds it; `waiting` is called once when that begins. The lock goes with the process, so
    a killed owner leaves nothing to clean up.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as problem:
        raise cannot_write(path, problem) from problem
    try:
        if not _try_lock(descriptor):
            if waiting is not None:
                waiting()
            while not _try_lock(descriptor):
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> int | None:
    """An exclusive lock between processes on the file `path`, held until the descriptor that is returned is closed; None where another
    process has it."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as problem:
        raise cannot_write(path, problem) from problem
    if _try_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as problem:
        raise FileProblem(f"A lock cannot be taken there: {problem.strerror}. Choose a folder on a local disk.") from problem
    return True
