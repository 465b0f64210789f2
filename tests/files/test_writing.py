"""Atomic writes and locks between processes."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

from herd.errors import CapacityError, FileProblem
from herd.files import atomic_write, file_lock, replacing
from herd.files.writing import cannot_write

HOLD = """
import sys, time
from pathlib import Path
from herd.files import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_write(path) as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"other")
        raise RuntimeError
    assert path.read_bytes() == b"half"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"absent.out: cannot be written"), atomic_write(tmp_path / "absent" / "out"):
        pass


def test_a_full_disk_is_a_matter_of_capacity(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="Free some space"), atomic_write(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
    assert isinstance(cannot_write(tmp_path, OSError(errno.EACCES, "Permission denied")), FileProblem)


def test_what_is_written_anew_takes_the_place_of_the_old_when_all_of_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_bytes(b"1")
    (tmp_path / "a.bin").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "other").write_bytes(b"1")

    def write(place: Path) -> None:
        for folder in ("model", "b"):
            (place / folder).mkdir()
            (place / folder / "new").write_bytes(b"2")
        (place / "a.bin").write_bytes(b"2")

    with pytest.raises(RuntimeError), replacing(tmp_path) as place:
        write(place)
        raise RuntimeError
    names = ["a.bin", "b", "model", "other"]
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    assert [(tmp_path / each).read_bytes() for each in ("a.bin", "b", "model/old")] == [b"1"] * 3
    with replacing(tmp_path) as place:
        write(place)
        assert (tmp_path / "model" / "old").is_file()
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    assert [(tmp_path / each).read_bytes() for each in ("a.bin", "b/new", "model/new", "other")] == [b"2", b"2", b"2", b"1"]
    assert not (tmp_path / "model" / "old").exists()


def test_a_second_process_waits_for_the_lock_and_gets_it_when_the_first_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        waited: list[float] = []

        def waiting() -> None:
            waited.append(time.monotonic())
            holder.kill()

        with file_lock(lock, waiting):
            assert len(waited) == 1
    with file_lock(lock, lambda: pytest.fail("nobody holds the lock")):
        pass
