"""Whether what is kept of a model is what was written: every byte is read, and what is damaged is deleted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from herd.errors import FileProblem
from herd.files.kept import Kept, is_foreign, kept_files, read_kept


@dataclass(frozen=True, slots=True)
class Checked:
    """The kept files that are as they were written, their bytes, and a line about every one that was not and is deleted."""

    num_files: int
    num_bytes: int
    removed: tuple[str, ...]


def check_kept(source: Path, told: Callable[[int], None] = lambda num_bytes: None) -> Checked:
    """Reads everything that is kept of the file or folder `source` and deletes what is damaged. A file whose table is damaged does not
    say what it was kept of, so such a file goes too, whose ever it was. `told` hears how many bytes were read more."""
    good, num_bytes, removed = 0, 0, []
    for path in kept_files():
        with suppress(FileProblem, OSError):
            kept = read_kept(path)
            if kept is not None and not kept.is_of(source):
                continue
            if kept is None and is_foreign(path):
                continue
            what = "its head, its table or its length is not what was written" if kept is None else _damage(kept, told)
            if what is None:
                assert kept is not None
                good, num_bytes = good + 1, num_bytes + kept.num_bytes
                continue
            path.unlink()
            removed.append(f"{path}: {what}")
    return Checked(good, num_bytes, tuple(removed))


def kept_bytes(source: Path) -> int:
    """How many bytes `check_kept` will read."""
    found = 0
    for path in kept_files():
        with suppress(FileProblem, OSError):
            kept = read_kept(path)
            found += kept.num_bytes if kept is not None and kept.is_of(source) else 0
    return found


def _damage(kept: Kept, told: Callable[[int], None]) -> str | None:
    damaged = kept.damaged(told)
    if not damaged:
        return None
    others = f", nor those of {len(damaged) - 1} others" if len(damaged) > 1 else ""
    return f"the bytes of {damaged[0]} are not what was written{others}"
