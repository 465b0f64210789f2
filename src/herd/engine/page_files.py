"""Pages of keys and values as files of one folder: named by what they hold, checked when they are read, bounded together.

A file's name is a keyed hash of which model computes what in which form (`identity`) and of the page's own key, which stands for a
caller's salt and for all tokens up to the page's end; a secret that lies in the folder keys it. So whoever can list the folder, or
measure how long a request takes, cannot tell what others asked. The file begins with a keyed hash of all that follows: what is
damaged, or was put there by somebody else, is never used; it is removed, and the log says so.

The folder holds `limit_bytes` at most, of all models together; what was used longest ago goes first. Processes that share a folder
learn of each other's pages every few seconds, so it may hold somewhat more for so long.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import logging
import os
import re
import secrets
import stat
import threading
import time
from hashlib import blake2b
from pathlib import Path
from typing import final

from herd.errors import CapacityError, UsageError

LIMIT_BYTES = 8 << 30
"""What a folder may hold, unless told."""
WARN_EVERY_S = 60.0
LOOK_AGAIN_S = 2.0
"""How often the folder is listed anew while something is written: other processes may write there too."""
ABANDONED_S = 600.0
"""After so long nobody goes on writing an unfinished file."""
_FOREIGN = (errno.ELOOP, errno.EMLINK, errno.EISDIR)
"""What opening a page says where there is a link, or a folder: nothing that was written here."""
_MAGIC = b"herdpage"
_HASH_BYTES = 32
_NAME = re.compile(r"[0-9a-f]{40}\.page")
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_LOG = logging.getLogger("herd.engine.disk")


@final
class PageFiles:
    """The files of one engine's pages. Safe to use from several threads, and beside other processes. `read` and `write` take as long as
    the disk does; nothing else waits for it.

    identity     what decides a page's contents besides its key: the weights, and everything that may change bits
    page_bytes   of each page's contents
    limit_bytes  for all files of the folder
    """

    def __init__(self, folder: Path, identity: bytes, page_bytes: int, limit_bytes: int) -> None:
        """`UsageError` for a folder that others may read, or that cannot be used; `CapacityError` for a limit that holds no page."""
        self.folder = folder
        self.file_bytes = file_bytes(page_bytes)
        if limit_bytes < self.file_bytes:
            raise CapacityError(f"The cache on the disk may take {limit_bytes:,} bytes; one page of this model takes {self.file_bytes:,}.")
        self._limit_bytes = limit_bytes
        self._secret = _opened(folder)
        self._identity = identity
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}  # by when they were used, the latest last; other models' too
        self._num_bytes = 0
        self._lost: set[str] = set()  # since the folder began to be listed
        self._looked_at = self._warned_at = float("-inf")
        try:
            self.look()
        except OSError as problem:
            raise _unusable(folder, problem) from problem

    @property
    def num_bytes(self) -> int:
        """Of the folder's pages."""
        with self._lock:
            return self._num_bytes

    def name(self, key: bytes) -> str:
        """The file that a page of this key has."""
        return blake2b(self._identity + key, key=self._secret, digest_size=20).hexdigest() + ".page"

    def has(self, name: str) -> bool:
        """Whether a page was there when the folder was last looked at. Does not touch the disk."""
        return name in self._files

    def read(self, name: str) -> bytes | None:
        """A page's contents; None, and no such file any more, if they are not what was written; None, and the file stays, if it cannot be
        read."""
        try:
            data = self._bytes_of(name)
        except FileNotFoundError:  # another process made room
            self._lose(name)
            return None
        except OSError as problem:
            if problem.errno in _FOREIGN:
                self._refuse(name, str(problem.strerror))
            else:  # it may be as good as ever: too many files are open, the disk is away
                self._warn("A page cannot be read from", problem)
                self._lose(name)
            return None
        at = len(_MAGIC) + _HASH_BYTES
        contents = memoryview(data)[at:]
        if len(data) != self.file_bytes or data[: len(_MAGIC)] != _MAGIC:
            self._refuse(name, f"it has {len(data)} bytes, or another beginning; expected {self.file_bytes}")
            return None
        if not hmac.compare_digest(data[len(_MAGIC) : at], self._hash(name, contents)):
            self._refuse(name, "its contents are not those that were written")
            return None
        with self._lock:
            if name in self._files:
                self._files[name] = self._files.pop(name)
        return bytes(contents)

    def write(self, name: str, contents: bytes) -> None:
        """Whole or not at all: under another name first. A full disk costs the page, and nothing else."""
        part = self.folder / f".{secrets.token_hex(8)}.part"
        try:
            self._make_room(self.file_bytes)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    for piece in (_MAGIC + self._hash(name, contents), contents):
                        view = memoryview(piece)
                        while view:
                            view = view[file.write(view) :]
                os.replace(part, self.folder / name)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except OSError as problem:
            self._warn("A page cannot be written to", problem)
            return
        with self._lock:
            if name not in self._files:
                self._files[name] = self.file_bytes
                self._num_bytes += self.file_bytes

    def _hash(self, name: str, contents: bytes | memoryview) -> bytes:
        found = blake2b(name.encode(), key=self._secret, digest_size=_HASH_BYTES)
        found.update(contents)
        return found.digest()

    def _bytes_of(self, name: str) -> bytes:
        """A file's bytes, no more than one too many. It counts as used now."""
        descriptor = os.open(self.folder / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EISDIR, "it is no file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(self.file_bytes + 1)
            with contextlib.suppress(OSError):  # its place in the order is lost, not the page
                os.utime(self.folder / name)
            return data
        finally:
            os.close(descriptor)

    def _refuse(self, name: str, reason: str) -> None:
        _LOG.warning("A page of the cache on the disk cannot be used and is removed: %s, %s.", name, reason)
        self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            os.unlink(self.folder / name)
        except FileNotFoundError:
            pass  # somebody else was quicker
        except OSError as problem:
            _LOG.warning("%s of the cache on the disk cannot be removed: %s.", name, problem.strerror)
        self._lose(name)

    def _lose(self, name: str) -> None:
        with self._lock:
            self._num_bytes -= self._files.pop(name, 0)
            self._lost.add(name)

    def _warn(self, what: str, problem: OSError) -> None:
        now = time.monotonic()
        if now - self._warned_at > WARN_EVERY_S:
            self._warned_at = now
            is_full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full" if is_full else problem.strerror
            _LOG.warning("%s the cache in %s: %s. It will be computed when it is asked for.", what, self.folder, reason)

    def _make_room(self, num_bytes: int) -> None:
        """Removes what was used longest ago until so many bytes more may be there. `OSError` if the folder cannot be listed."""
        if time.monotonic() - self._looked_at > LOOK_AGAIN_S:
            self.look()
        with self._lock:
            leaving, left = [], self._num_bytes
            for name, size in self._files.items():
                if left + num_bytes <= self._limit_bytes:
                    break
                leaving.append(name)
                left -= size
        for name in leaving:
            self._remove(name)

    def look(self) -> None:
        """Lists the folder: its pages, the longest unused first. Unfinished files that nobody writes any more are removed. `OSError`.

        Nobody waits meanwhile. Only this thread adds pages; what others lose while it lists is left out.
        """
        with self._lock:
            self._lost.clear()
        try:
            found = self._listed()
        except FileNotFoundError:  # the folder was removed, and all in it
            with self._lock:
                self._files, self._num_bytes = {}, 0
            raise
        files = {name: size for _, name, size in sorted(found)}
        num_bytes = sum(files.values())
        with self._lock:
            for name in self._lost:
                num_bytes -= files.pop(name, 0)
            self._files, self._num_bytes = files, num_bytes
            self._lost.clear()
        self._looked_at = time.monotonic()

    def _listed(self) -> list[tuple[int, str, int]]:
        """When it was used, name and bytes of each page in the folder."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    state = entry.stat(follow_symlinks=False)
                    if _PART.fullmatch(entry.name) and time.time() - state.st_mtime > ABANDONED_S:
                        os.unlink(entry.path)
                    elif _NAME.fullmatch(entry.name):
                        found.append((state.st_mtime_ns, entry.name, state.st_size))
                except OSError:
                    continue  # it is gone by now, or is nothing that was made here
        return found


def file_bytes(page_bytes: int) -> int:
    """What a page of so many bytes takes as a file."""
    return len(_MAGIC) + _HASH_BYTES + page_bytes


def _unusable(folder: Path, problem: OSError) -> UsageError:
    return UsageError(f"{folder} cannot hold a cache: {problem.strerror}. Name a folder that can be read and written.")


def _check_owner(folder: Path) -> None:
    """`UsageError` for a folder, or a link to one, of somebody else, or that others may read."""
    if os.name != "posix":
        return
    state = folder.stat()
    if {folder.lstat().st_uid, state.st_uid} != {os.geteuid()}:
        raise UsageError(f"{folder} belongs to another user, who could read what is asked here. Name a folder of your own.")
    if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{folder} is open to others, and would hold what is asked here. Close it (chmod 700), or name another.")


def _opened(folder: Path) -> bytes:
    """Makes the folder if need be, for this user alone; its secret."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(folder)
        place = folder / "secret"
        if not place.exists():
            part = folder / f".{secrets.token_hex(8)}.part"
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_HASH_BYTES))
            try:
                os.link(part, place)  # of several processes that start at once, one makes it
            except FileExistsError:
                pass
            finally:
                part.unlink()
        with os.fdopen(os.open(place, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            found = file.read()
    except OSError as problem:
        raise _unusable(folder, problem) from problem
    if len(found) != _HASH_BYTES:
        raise UsageError(f"{place} has {len(found)} bytes; expected {_HASH_BYTES}. Remove the folder, or name another.")
    return found
