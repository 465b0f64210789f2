"""What was worked out from other files and is kept in HERD_HOME/cache, so that the next start need not work it out again.

Everything here may be deleted at any time. A file is there whole or not at all, and one that is damaged is treated as absent.

    cache/NAME.kept     head | table (JSON) | zeros | part | zeros | part ...     every part begins at a multiple of 64 bytes

All kept files together take at most HERD_CACHE_BYTES (16 GiB if it is not set; 0 keeps and reads nothing) and what is written
takes at most a quarter of the free disk. To make room, files that were not used for longest go first. What cannot be done without
(`keep_pieces`: weights that memory does not hold) may take the disk but for 1 GiB, and as much as HERD_CACHE_BYTES if that is set.
"""

from __future__ import annotations

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
_MAGIC = b"herdkept"
_VERSION = 1
# magic, version, CRC of the table, bytes of the table, bytes of the whole file
_HEAD = struct.Struct("<8sIIQQ")
_PIECE_BYTES = 32 << 20
_ABANDONED_S = 3600.0
_SPARE_BYTES = 1 << 30


class Kept:
    """An opened kept file, mapped read-only. `about` is what `keep` was told; `part` gives bytes in place."""

    def __init__(self, file: MappedFile, about: Mapping[str, Any], places: Mapping[str, tuple[int, int]]) -> None:
        self.about = about
        self.names = tuple(places)
        self._file = file
        self._places = places

    def part(self, name: str) -> memoryview:
        """The bytes of a part, uint8; a view that stays valid when this object goes."""
        start, size = self._places[name]
        return self._file.view[start : start + size]


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
        file = MappedFile(path)
        kept = _read(file)
    except (FileProblem, OSError):
        return None
    if kept is None:
        file.close()
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
    table, places, total = _layout(about, {part: data.nbytes for part, data in parts.items()})
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        if not _make_room(folder, total):
            return False
        with atomic_write(_path(name)) as file:
            file.write(_HEAD.pack(_MAGIC, _VERSION, zlib.crc32(table), len(table), total) + table)
            for part, (start, _) in zip(parts.values(), places.values(), strict=True):
                _write(file, start, part, is_cancelled)
    except (OSError, HerdError, _Cancelled):
        return False
    return True


def keep_pieces(name: str, about: Mapping[str, Any], parts: Mapping[str, tuple[int, Iterable[memoryview]]]) -> None:
    """Writes `parts` under `name`: of each its size in bytes and the pieces that it is made of, one after the other, none of them held for
    longer than it takes to write it. `CapacityError` where the disk, or the limit that is set, has no room even with all else gone."""
    table, places, total = _layout(about, {part: size for part, (size, _) in parts.items()})
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FileProblem(f"{folder}: cannot be made: {problem.strerror}.") from problem
    _remove_abandoned(folder)
    _make_much_room(folder, total)
    with atomic_write(_path(name)) as file:
        file.write(_HEAD.pack(_MAGIC, _VERSION, zlib.crc32(table), len(table), total) + table)
        for (_, pieces), (start, size) in zip(parts.values(), places.values(), strict=True):
            file.write(bytes(start - file.tell()))
            for piece in pieces:
                file.write(piece)
                file.flush()
                os.fsync(file.fileno())  # so that memory holds little of what the disk has not taken yet
            assert file.tell() == start + size, "pieces make up their part"


def forget(source: Path) -> int:
    """Deletes what is kept of the file or folder `source` and of everything in it; the bytes that were freed."""
    freed = 0
    gone = os.path.abspath(source)
    for path in _kept_files():
        try:
            kept = _read(MappedFile(path))
            origin = str(kept.about.get("source", "")) if kept is not None else ""
            if origin == gone or origin.startswith(gone + os.sep):
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


def _layout(about: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[bytes, dict[str, tuple[int, int]], int]:
    """(table, where each part begins and its bytes, bytes of the whole file). Offsets in the table count from the first part."""
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name, size in sizes.items():
        places[name] = (end, size)
        end = _aligned(end + size)
    table = json.dumps({"about": about, "parts": places}).encode()
    start = _aligned(_HEAD.size + len(table))
    last = max((begin + size for begin, size in places.values()), default=0)
    return table, {name: (start + begin, size) for name, (begin, size) in places.items()}, start + last


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _write(file: BinaryIO, start: int, part: memoryview, is_cancelled: Callable[[], bool]) -> None:
    """Pieces reach the disk one by one, so that stopping never waits for more than one."""
    file.write(bytes(start - file.tell()))
    data = part.cast("B")
    for at in range(0, len(data), _PIECE_BYTES):
        if is_cancelled():
            raise _Cancelled
        file.write(data[at : at + _PIECE_BYTES])
        if len(data) > _PIECE_BYTES:
            file.flush()
            os.fsync(file.fileno())


def _read(file: MappedFile) -> Kept | None:
    """The file's parts, if its head, its table and its length agree."""
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
    places = {name: (start + begin, size) for name, (begin, size) in value["parts"].items()}
    if any(begin + size > file.size for begin, size in places.values()):
        return None
    return Kept(file, value["about"], places)


def _kept_files() -> Iterator[Path]:
    with suppress(OSError, UsageError):
        yield from sorted(cache_folder().glob("*.kept"))


def _sizes() -> list[tuple[float, int, Path]]:
    """(last use, bytes, path) of every kept file."""
    found = []
    for path in _kept_files():
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
