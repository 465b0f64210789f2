"""What was worked out from other files and is kept in HERD_HOME/cache, so that the next start need not work it out again.

Everything here may be deleted at any time. A file is there whole or not at all, and one that is damaged is treated as absent.

    cache/NAME.kept     head | table (JSON) | zeros | part | zeros | part ...     every part begins at a multiple of 64 bytes

The table has the SHA-256 of every part. Whoever opens a file has its head, its table and its length checked, and all of its bytes if
they are few; of a larger one, which is mapped so that nobody need read all of it, the bytes are checked when `Kept.damaged` or
`checking.check_kept` is called.

All kept files together take at most HERD_CACHE_BYTES (16 GiB if it is not set; 0 keeps and reads nothing) and what is written
takes at most a quarter of the free disk. To make room, files that were not used for longest go first. What cannot be done without
(`keep_pieces`: weights that memory does not hold) may take the disk but for 1 GiB, and as much as HERD_CACHE_BYTES if that is set.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from herd.errors import CapacityError, FileProblem, HerdError, UsageError
from herd.files.folders import cache_folder
from herd.files.mapped import MappedFile
from herd.files.writing import atomic_write

DEFAULT_LIMIT_BYTES = 16 << 30
ALIGNMENT = 64
CHECKED_AT_ONCE_BYTES = 1 << 20
"""Of files up to this size every byte is checked when they are opened."""
_MAGIC = b"herdkept"
_VERSION = 2
# magic, version, CRC of the table, bytes of the table, bytes of the whole file
_HEAD = struct.Struct("<8sIIQQ")
_PIECE_BYTES = 32 << 20
_NO_DIGEST = "0" * 64
_ABANDONED_S = 3600.0
_SPARE_BYTES = 1 << 30


class Kept:
    """An opened kept file, mapped read-only. `about` is what `keep` was told; `part` gives bytes in place."""

    def __init__(self, path: Path, view: memoryview, about: Mapping[str, Any], places: Mapping[str, tuple[int, int, str]]) -> None:
        self.path = path
        self.about = about
        self.names = tuple(places)
        self.num_bytes = view.nbytes
        self._view = view
        self._places = places

    def part(self, name: str) -> memoryview:
        """The bytes of a part, uint8; a view that stays valid when this object goes."""
        start, size, _ = self._places[name]
        return self._view[start : start + size]

    def damaged(self, told: Callable[[int], None] = lambda num_bytes: None) -> tuple[str, ...]:
        """The parts whose bytes are not those that were kept. Reads the whole file; `told` hears how many bytes it has read more."""
        found = []
        for name, (start, size, expected) in self._places.items():
            digest = hashlib.sha256()
            for at in range(start, start + size, _PIECE_BYTES):
                piece = self._view[at : min(at + _PIECE_BYTES, start + size)]
                digest.update(piece)
                told(len(piece))
            if digest.hexdigest() != expected:
                found.append(name)
        return tuple(found)

    def is_of(self, source: Path) -> bool:
        """Whether this came from the file or folder `source`, or from something in it."""
        origin, place = str(self.about.get("source", "")), os.path.abspath(source)
        return origin == place or origin.startswith(place.rstrip(os.sep) + os.sep)


def limit_bytes() -> int:
    """How many bytes all kept files together may take. `UsageError` if HERD_CACHE_BYTES is no count."""
    text = os.environ.get("HERD_CACHE_BYTES", "").strip()
    if not text:
        return DEFAULT_LIMIT_BYTES
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"HERD_CACHE_BYTES is {text!r:.60}; expected a count of bytes. 0 switches the cache off.")
    return int(text)


def open_kept(name: str) -> Kept | None:
    """The kept file of this name, marked as used just now; None if there is none that is whole."""
    path = _path(name)
    if limit_bytes() == 0 or not path.is_file():
        return None
    try:
        kept = read_kept(path)
    except (FileProblem, OSError):
        return None
    if kept is None or (kept.num_bytes <= CHECKED_AT_ONCE_BYTES and kept.damaged()):
        with suppress(OSError):
            path.unlink()
        return None
    with suppress(OSError):
        os.utime(path)
    return kept


def keep(name: str, about: Mapping[str, Any], parts: Mapping[str, memoryview], is_cancelled: Callable[[], bool]) -> bool:
    """Writes `parts` under `name`; whether it is there now.

    A folder that cannot be written, a full disk or a limit that is too low are no errors: then there is no cache. `about` is
    JSON; its key "source" says which file or folder this came from (see `forget`).
    """
    layout = _Layout(about, {part: data.nbytes for part, data in parts.items()})
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        if not _make_room(folder, layout.total):
            return False
        with atomic_write(_path(name)) as file:
            digests = [_write(file, layout.start + begin, parts[part], is_cancelled) for part, (begin, _) in layout.places.items()]
            layout.write_head(file, digests)
    except (OSError, HerdError, _Cancelled):
        return False
    return True


def keep_pieces(name: str, about: Mapping[str, Any], parts: Mapping[str, tuple[int, Iterable[memoryview]]]) -> None:
    """Writes `parts` under `name`: of each its size in bytes and the pieces that it is made of, one after the other, none of them held for
    longer than it takes to write it. `CapacityError` where the disk, or the limit that is set, has no room even with all else gone."""
    layout = _Layout(about, {part: size for part, (size, _) in parts.items()})
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FileProblem(f"{folder}: cannot be made: {problem.strerror}.") from problem
    _remove_abandoned(folder)
    _make_much_room(folder, layout.total)
    with atomic_write(_path(name)) as file:
        digests = []
        for (_, pieces), (begin, size) in zip(parts.values(), layout.places.values(), strict=True):
            file.write(bytes(layout.start + begin - file.tell()))
            digest = hashlib.sha256()
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
                file.flush()
                os.fsync(file.fileno())  # so that memory holds little of what the disk has not taken yet
            assert file.tell() == layout.start + begin + size, "pieces make up their part"
            digests.append(digest.hexdigest())
        layout.write_head(file, digests)


def forget(source: Path) -> int:
    """Deletes what is kept of the file or folder `source` and of everything in it; the bytes that were freed."""
    freed = 0
    for path in kept_files():
        try:
            kept = read_kept(path)
            if kept is not None and kept.is_of(source):
                size = path.stat().st_size
                path.unlink()
                freed += size
        except (FileProblem, OSError):
            continue
    return freed


def used_bytes() -> int:
    """What all kept files take on the disk."""
    return sum(size for _, size, _ in _sizes())


class _Cancelled(Exception):
    """The writer was told to stop."""


def _path(name: str) -> Path:
    return cache_folder() / f"{name}.kept"


class _Layout:
    """Where everything lies in a file that is to be written: parts from `start` on, `places` (begin, bytes) counted from there, `total`
    bytes. Digests are known when the parts are written, so the head and the table come last, into the room that is left for them."""

    def __init__(self, about: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        end = last = 0
        for name, size in sizes.items():
            self.places[name] = (end, size)
            last = max(last, end + size)
            end = _aligned(end + size)
        self._about = about
        self.start = _aligned(_HEAD.size + len(self._table([_NO_DIGEST] * len(sizes))))
        self.total = self.start + last

    def write_head(self, file: BinaryIO, digests: list[str]) -> None:
        """With the digest of each part, in the order of `places`."""
        table = self._table(digests)
        assert _aligned(_HEAD.size + len(table)) == self.start, "every digest has the same length"
        file.write(bytes(self.total - file.tell()))
        file.seek(0)
        file.write(_HEAD.pack(_MAGIC, _VERSION, zlib.crc32(table), len(table), self.total) + table)

    def _table(self, digests: list[str]) -> bytes:
        parts = {name: (*place, digest) for (name, place), digest in zip(self.places.items(), digests, strict=True)}
        return json.dumps({"about": self._about, "parts": parts}).encode()


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _write(file: BinaryIO, start: int, part: memoryview, is_cancelled: Callable[[], bool]) -> str:
    """The SHA-256 of the part. Pieces reach the disk one by one, so that stopping never waits for more than one."""
    file.write(bytes(start - file.tell()))
    data = part.cast("B")
    digest = hashlib.sha256()
    for at in range(0, len(data), _PIECE_BYTES):
        if is_cancelled():
            raise _Cancelled
        digest.update(data[at : at + _PIECE_BYTES])
        file.write(data[at : at + _PIECE_BYTES])
        if len(data) > _PIECE_BYTES:
            file.flush()
            os.fsync(file.fileno())
    return digest.hexdigest()


def read_kept(path: Path) -> Kept | None:
    """The file at this path; None if its head, its table and its length do not agree. `FileProblem` if it cannot be opened."""
    file = MappedFile(path)
    if file.size < _HEAD.size:
        return None
    magic, version, checksum, table_bytes, total = _HEAD.unpack_from(file.view)
    if (magic, version, total) != (_MAGIC, _VERSION, file.size) or table_bytes > file.size - _HEAD.size:
        return None
    table = bytes(file.view[_HEAD.size : _HEAD.size + table_bytes])
    if zlib.crc32(table) != checksum:
        return None
    value = json.loads(table)
    start = _aligned(_HEAD.size + table_bytes)
    places = {name: (start + begin, size, digest) for name, (begin, size, digest) in value["parts"].items()}
    if any(begin + size > file.size for begin, size, _ in places.values()):
        return None
    return Kept(path, file.view, value["about"], places)


def is_foreign(path: Path) -> bool:
    """Whether another version of herd, with another format, wrote this file. `OSError` if it cannot be read."""
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
    return len(head) == _HEAD.size and head.startswith(_MAGIC) and _HEAD.unpack(head)[1] != _VERSION


def kept_files() -> Iterator[Path]:
    """The paths of all kept files."""
    with suppress(OSError, UsageError):
        yield from sorted(cache_folder().glob("*.kept"))


def _sizes() -> list[tuple[float, int, Path]]:
    """(last use, bytes, path) of every kept file."""
    found = []
    for path in kept_files():
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    return found


def _make_room(folder: Path, num_bytes: int) -> bool:
    """Whether `num_bytes` more may be kept; deletes what was not used for longest if that is needed."""
    import shutil

    limit = limit_bytes()
    if num_bytes > limit or num_bytes > shutil.disk_usage(folder).free // 4:
        return False
    files = sorted(_sizes(), key=lambda each: each[0])
    used = sum(size for _, size, _ in files)
    for _, size, path in files:
        if used + num_bytes <= limit:
            break
        path.unlink(missing_ok=True)
        used -= size
    return True


def _make_much_room(folder: Path, num_bytes: int) -> None:
    """Room for what cannot be done without: other files go, those first that were not used for longest. `CapacityError` if that is
    not enough."""
    import shutil

    limit = limit_bytes()
    if os.environ.get("HERD_CACHE_BYTES", "").strip() and num_bytes > limit:
        raise CapacityError(
            f"The weights do not fit into memory, and HERD_CACHE_BYTES allows {limit:,} bytes on the disk; packed they take {num_bytes:,}. "
            "Allow more, close other programs, or choose a smaller model or format."
        )
    for _, _, path in sorted(_sizes(), key=lambda each: each[0]):
        if shutil.disk_usage(folder).free >= num_bytes + _SPARE_BYTES:
            return
        path.unlink(missing_ok=True)
    if (free := shutil.disk_usage(folder).free) < num_bytes + _SPARE_BYTES:
        raise CapacityError(
            f"The weights do not fit into memory, and to run from the disk they take {num_bytes + _SPARE_BYTES:,} bytes in {folder}; "
            f"{free:,} are free. Free some space, let HERD_HOME name another disk, or choose a smaller model or format."
        )


def _remove_abandoned(folder: Path) -> None:
    """Temporary files of writers that were killed."""
    import time

    for path in folder.glob(".*.part"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
