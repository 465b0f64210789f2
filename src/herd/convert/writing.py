"""New files and folders that appear under their name only when they are whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from herd.convert.streams import Output, pieces
from herd.errors import CapacityError, UsageError
from herd.family.progress import Progress
from herd.files.writing import cannot_write, sync_folder


class Sink(Protocol):
    """What the bytes of tensors go to."""

    def write(self, data: memoryview, /) -> object: ...


@dataclass(slots=True)
class Told:
    """Counts bytes for a progress bar."""

    progress: Progress
    name: str
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        self.progress(self.name, self.done, self.total)


def write_tensor(sink: Sink, output: Output, told: Told) -> None:
    """Stream one tensor."""
    for piece in pieces(output.source):
        data = np.ascontiguousarray(piece).reshape(-1).data
        sink.write(data)
        told.add(len(data))


def check_place(path: Path, num_bytes: int) -> None:
    """`UsageError` if there is something under that name already or no folder to put it in; `CapacityError` if it cannot fit."""
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already; nothing is overwritten. Choose another name, or remove it.")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder; make it first.")
    free = shutil.disk_usage(path.parent).free
    if num_bytes > free:
        raise CapacityError(f"{path}: takes {num_bytes:,} bytes and {free:,} are free there. Make room, or choose another disk.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill. At the end of the block everything in it is synced and it gets its name; on any error it is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir()
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _sync(file)
            sync_folder(temporary)
            if path.exists() or path.is_symlink():
                raise UsageError(f"{path} was made by somebody else meanwhile; nothing is overwritten.")
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)
    except OSError as problem:
        raise cannot_write(path, problem) from problem


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def total_bytes(outputs: Sequence[Output]) -> int:
    """Bytes of all tensors."""
    return sum(output.num_bytes for output in outputs)


def pad(file: BinaryIO, alignment: int) -> None:
    """Zeros up to the next multiple of `alignment`."""
    file.write(bytes(-file.tell() % alignment))
