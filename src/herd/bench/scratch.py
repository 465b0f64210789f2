"""A folder for a model that is written for one measurement: gone afterwards, whatever ends the measurement.

An error and Ctrl-C remove it, and so do SIGTERM and SIGHUP, which end the program as errors do. What cannot be helped (SIGKILL, a power
failure) is made good by the next measurement: each folder holds a locked file, a lock goes with its process, and folders whose
lock nobody has are removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from herd.errors import FileProblem, HerdError
from herd.files import take_lock

PREFIX = "herd-bench-"
LOCK_FILE = "in-use"
_UNLOCKED_S = 3600.0
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in the system's folder for temporary files. Removes those that dead processes left there. `FileProblem` or
    `CapacityError` where none can be made."""
    remove_abandoned()
    with _ending_on_signals():
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        except OSError as problem:
            raise FileProblem(f"{tempfile.gettempdir()}: no folder can be made there: {problem.strerror}. Set TMPDIR to one.") from problem
        lock = None
        try:
            lock = take_lock(folder / LOCK_FILE)
            yield folder
        finally:
            if lock is not None:
                os.close(lock)
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> None:
    """Removes the folders of processes that are no more. Those of other users, and what is none of ours, stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, HerdError):
            if folder.is_symlink() or not folder.is_dir() or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
                continue
            if not (folder / LOCK_FILE).exists():
                if time.time() - folder.stat().st_mtime > _UNLOCKED_S:  # or its process has just made it
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            lock = take_lock(folder / LOCK_FILE)
            if lock is not None:
                os.close(lock)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """While the block runs, the first of `SIGNALS` ends the program with the exit code that shells give it, by way of every `finally`;
    more of them change nothing. One that is ignored (nohup) stays so. Outside of the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)}

    def end(number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
