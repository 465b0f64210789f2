"""Small files that are read whole: never more of them than somebody said, and what is wrong is told by name."""

from __future__ import annotations

from pathlib import Path

from herd.errors import FileProblem

MAX_TEXT_BYTES = 64 << 20


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A file of at most `max_bytes`. `FileProblem` for a larger one, and for what cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as problem:
        raise FileProblem(f"{path}: cannot be read: {problem.strerror}.") from problem
    if len(data) > max_bytes:
        raise FileProblem(f"{path}: is larger than {max_bytes:,} bytes, the most that such a file may have.")
    return data


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The same as UTF-8 text."""
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise FileProblem(f"{path}: is not valid UTF-8 at byte {problem.start}. Convert it, for example with iconv.") from problem
