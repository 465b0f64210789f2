"""Mapped files: sizes, what is not a file, and memory that is given back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from herd.errors import FileProblem
from herd.files import MappedFile


def test_the_bytes_of_a_file_are_there_and_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    file = MappedFile(tmp_path / "a")
    assert bytes(file.view) == b"abc" and file.size == 3 and file.name == "a" and file.view.readonly
    file.close()


def test_an_empty_file_has_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert MappedFile(tmp_path / "a").size == 0


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="cannot be opened"):
        MappedFile(tmp_path / "absent")
    with pytest.raises(FileProblem, match=r"not a regular file|cannot be opened"):
        MappedFile(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileProblem, match="not a regular file"):
        MappedFile(tmp_path / "pipe")


def test_a_file_that_was_cut_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(10_000))
    file = MappedFile(path)
    file.check_unchanged()
    os.truncate(path, 100)
    with pytest.raises(FileProblem, match="had 10000 bytes when it was opened and has 100 now"):
        file.check_unchanged()
    file.close()


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are counted from /proc")
def test_pages_that_were_dropped_are_out_of_memory_and_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(os.urandom(8 << 20))
    file = MappedFile(path)
    expected = bytes(file.view)

    def resident() -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        start = next(index for index, line in enumerate(lines) if line.endswith(str(path)))
        return next(int(line.split()[1]) for line in lines[start:] if line.startswith("Rss:"))

    assert resident() >= 8 << 10
    file.drop_pages(1, (8 << 20) - 1)
    assert resident() <= 8
    assert bytes(file.view) == expected


def test_memory_that_is_still_looked_at_outlives_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    file = MappedFile(tmp_path / "a")
    view = file.view[1:]
    file.close()
    assert bytes(view) == b"bc"


def test_a_file_that_nobody_holds_any_more_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    for _ in range(3):
        file = MappedFile(tmp_path / "a")
        descriptor = file._descriptor
        del file
        assert descriptor is not None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
