"""A data file as a stream of bytes, unpacked if it is packed: by what its first bytes say, whatever it is called."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from herd.errors import FileProblem, UsageError

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_STEP_BYTES = 1 << 12
"""Of a packed file at a time: what a malicious frame makes of so much still fits into memory."""


@contextmanager
def open_data(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked. `FileProblem` for one that cannot be read, is damaged, or is cut short, also while it is read."""
    try:
        with path.open("rb") as file:
            begin = file.read(4)
            file.seek(0)
            if begin.startswith(_GZIP):
                with gzip.open(file) as unpacked:
                    yield cast(BinaryIO, unpacked)
            elif begin == _ZSTANDARD:
                yield cast(BinaryIO, io.BufferedReader(_Zstandard(path, file)))
            elif path.suffix.lower() in (".gz", ".zst") and begin:
                raise FileProblem(f"{path}: is called {path.suffix} and is not packed so. Name it by what it is.")
            else:
                yield file
    except EOFError:
        raise FileProblem(f"{path}: the packed file ends too early; it was cut short. Copy it again.") from None
    except (gzip.BadGzipFile, zlib.error) as problem:
        raise FileProblem(f"{path}: cannot be unpacked: {problem}. It is damaged; copy it again.") from None
    except OSError as problem:
        raise FileProblem(f"{path}: cannot be read: {problem.strerror or problem}.") from None


class _Zstandard(io.RawIOBase):
    """Frames of Zstandard, one after another; unlike the library's own reader it notices that the last one is cut short."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError:
            raise UsageError(
                f"{path} is packed with Zstandard, which needs a package that is not installed: pip install 'herd-llama[data]'."
            ) from None
        self._library: Any = zstandard
        self._path, self._file = path, file
        self._frame: Any = None
        self._packed, self._held = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            if not self._packed:
                self._packed = self._file.read(_STEP_BYTES)
                if not self._packed:
                    if self._frame is not None:
                        raise EOFError
                    return 0
            self._unpack()
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size

    def _unpack(self) -> None:
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        try:
            self._held = memoryview(self._frame.decompress(self._packed))
        except self._library.ZstdError as problem:
            raise FileProblem(f"{self._path}: cannot be unpacked: {problem}. It is damaged; copy it again.") from None
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
