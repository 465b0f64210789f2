"""The folder of a model that is written for one measurement goes, whatever ends the measurement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from herd.bench.scratch import LOCK_FILE, PREFIX, SIGNALS, remove_abandoned, scratch_folder

WAITING = """
import signal, sys, time
from herd.bench.scratch import SIGNALS, scratch_folder
for number in SIGNALS:
    signal.signal(number, signal.SIG_DFL)  # whatever these tests were started under: nohup has one of them ignored
with scratch_folder() as folder:
    (folder / "model.gguf").write_bytes(b"weights")
    print("there", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def _waiting() -> subprocess.Popen[str]:
    """A process that has a folder with a model in it."""
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def _ended(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(20)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without a signal")
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_that_ends_the_program_removes_the_model(place: Path, number: int) -> None:
    process = _waiting()
    assert len(list(place.iterdir())) == 1
    process.send_signal(number)
    assert _ended(process) == 128 + number and list(place.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_and_what_a_living_one_has_stays(place: Path) -> None:
    process = _waiting()
    (folder,) = place.iterdir()
    remove_abandoned()
    assert (folder / "model.gguf").exists(), "its process lives"
    process.kill()
    _ended(process)
    assert folder.exists()
    with scratch_folder() as other:
        assert list(place.iterdir()) == [other]
    assert list(place.iterdir()) == []


def test_folders_without_a_lock_go_when_they_are_old_and_nothing_else_goes(place: Path) -> None:
    old, new, foreign = (place / name for name in (f"{PREFIX}old", f"{PREFIX}new", "other-old"))
    for folder in (old, new, foreign):
        folder.mkdir()
        (folder / "model.gguf").write_bytes(b"weights")
        if folder is not new:
            os.utime(folder, (1e9, 1e9))
    (place / f"{PREFIX}file").write_bytes(b"")
    (place / f"{PREFIX}link").symlink_to(foreign)
    (foreign / LOCK_FILE).write_bytes(b"")
    remove_abandoned()
    assert not old.exists() and new.exists() and (foreign / "model.gguf").exists() and len(list(place.iterdir())) == 4


def test_an_error_removes_the_folder_and_the_handlers_of_signals_come_back(place: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ValueError, match="in the midst"), scratch_folder() as folder:
        raise ValueError("in the midst")
    assert not folder.exists() and [signal.getsignal(number) for number in SIGNALS] == before
