"""Runs a Python program that nobody has read, such as a model's answer, where it can do little harm.

What holds where (`Outcome.guards` says what held):

    limits      everywhere: time, memory of each process, size of each file, output
    network     Linux with user namespaces: there is none, not even to this machine
    processes   the same: a number of them, and none outlives the program or sees others
    files       the same: everything read-only, except a small folder in memory that is gone afterwards

What it cannot do: hide files that this user may read (the program has nowhere to send them except its output, which whoever asked
gets); stand against a hole in the system's kernel; bound the memory of all processes together (it is `processes` times that of one);
or keep a program from cheating at its tests other than by ending early (`passes`). Where guards are missing - no Linux, or a container
that forbids user namespaces - `run_program` refuses, unless it is told which ones must hold.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any

from herd.errors import UsageError
from herd.records import dataclass
from herd.training.settings.rewards import GUARDS

_CHILD = Path(__file__).with_name("sandbox_child.py")
_START_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use.

    seconds        of the clock, and of each process's computing
    memory_bytes   addresses of each process
    processes      processes and threads at once, its own included
    files_bytes    all files together
    files          how many files and folders
    output_bytes   of its output, and as much again of its errors
    """

    seconds: float = 5.0
    memory_bytes: int = 512 << 20
    processes: int = 4
    files_bytes: int = 16 << 20
    files: int = 256
    output_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_bytes", "processes", "files_bytes", "files", "output_bytes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"The sandbox's limit {name} is {value!r:.40}; it must be more than 0.")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. `reason`: "ended" (by itself, with `exit_code`; below 0: by that signal), "time" or "output" (ended by us)."""

    reason: str
    exit_code: int | None
    output: str
    errors: str
    seconds: float
    guards: frozenset[str]

    @property
    def is_success(self) -> bool:
        return self.reason == "ended" and self.exit_code == 0


def run_program(source: str, limits: Limits | None = None, required: Collection[str] = GUARDS) -> Outcome:
    """Runs the text of a program by this Python. `UsageError` if a guard that is `required` does not hold; it was not run then, or was
    ended within the limits."""
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="herd-sandbox-") as folder:
        os.chmod(folder, 0o711)
        reading, writing = os.pipe()
        try:
            process = _start(limits, folder, writing)
        finally:
            os.close(writing)
        with process, os.fdopen(reading, "rb") as report:
            return _followed(process, source, limits, report, frozenset(required))


def passes(code: str, tests: str, limits: Limits | None = None, required: Collection[str] = GUARDS) -> bool:
    """Whether `code` followed by `tests` (statements that raise when something is wrong) runs to its end. Ending early is not passing:
    a word that the code cannot guess has to be said after the tests."""
    word = secrets.token_hex(16)
    said = f"\nimport sys as _sys\n_sys.stdout.write('\\n{word}\\n')\n_sys.stdout.flush()\n"
    outcome = run_program(f"{code}\n\n{tests}\n{said}", limits, required)
    return outcome.is_success and outcome.output.rstrip().endswith(word)


def _start(limits: Limits, folder: str, report: int) -> subprocess.Popen[bytes]:
    told = {
        "folder": folder,
        "report": report,
        "cpu_s": math.ceil(limits.seconds),
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "files_bytes": limits.files_bytes,
        "files": limits.files,
    }
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD), json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(report,),
        start_new_session=True,
        env={"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        cwd="/",
    )


def _followed(process: subprocess.Popen[bytes], source: str, limits: Limits, report: IO[bytes], required: frozenset[str]) -> Outcome:
    """Feeds the program, gathers what it says, and ends it when it goes too far."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    start = time.monotonic()
    gathered = [_Gathered(stream, limits.output_bytes, lambda: _kill(process)) for stream in (process.stdout, process.stderr)]
    guards: frozenset[str] = frozenset()
    is_late = False
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(source.encode("utf-8", "surrogatepass"))
            process.stdin.close()
        alarm = threading.Timer(limits.seconds + _START_S, lambda: _kill(process))
        alarm.start()
        try:
            guards = frozenset(_line(report).get("guards", ()))
            if missing := sorted(required - guards):
                raise UsageError(_missing(missing))
            start = time.monotonic()
            try:
                process.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                is_late = True
        finally:
            alarm.cancel()
    finally:
        _kill(process)
        process.wait()
        for each in gathered:
            each.finish()
    status = _line(report).get("status")
    reason = "output" if any(each.is_full for each in gathered) else "time" if is_late else "ended"
    output, errors = (each.text for each in gathered)
    return Outcome(reason, status if reason == "ended" else None, output, errors, time.monotonic() - start, guards)


class _Gathered:
    """What comes from a stream, up to a number of bytes; more than that calls `when_full`."""

    def __init__(self, stream: IO[bytes], most: int, when_full: Callable[[], None]) -> None:
        self._stream, self._most, self._when_full = stream, most, when_full
        self._data = bytearray()
        self.is_full = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(self._stream.fileno(), 1 << 16):
                if not self.is_full:
                    self._data += piece[: self._most - len(self._data)]
                if len(self._data) >= self._most and not self.is_full:
                    self.is_full = True
                    self._when_full()

    def finish(self) -> None:
        self._thread.join(timeout=5)

    @property
    def text(self) -> str:
        return self._data.decode("utf-8", "replace")


def _line(report: IO[bytes]) -> dict[str, Any]:
    line = report.readline(4096)
    found: dict[str, Any] = json.loads(line) if line else {}
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the session that was started for it. The first of its namespace dies with its parent, and all others with the first."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _missing(guards: list[str]) -> str:
    return (
        f"The sandbox has no hold here on: {', '.join(guards)}. That takes Linux with user namespaces, which this system or its container "
        "forbids. Run where they are allowed, or name the guards that must hold (sandbox.required) if you trust what is run."
    )
