"""The folder of a run: what was asked for, on what, what was measured, and what it has learned so far.

    NAME/config.toml      all settings, resolved; secrets redacted
    NAME/facts.json       digests of the data and of the model, version and commit, machine
    NAME/metrics.jsonl    a line for each step and each evaluation: only what weights, data, seed and step decide, so that the log of
                          a run that was killed and resumed has the same bytes as that of one that was not
    NAME/timings.jsonl    what was measured at each step: seconds, tokens per second, memory
    NAME/checkpoints/     see `saving`
    NAME/bad/             batches of steps whose loss or gradient was no number
    NAME/curves.svg       the log, drawn
    NAME/end.json         how it ended; absent while it runs or if its process died
    NAME/.lock            held by the process that works on it

Recipes add `adapter/` or `model/`, what the run is for.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from herd.errors import FileProblem, UsageError
from herd.files import atomic_write, take_lock
from herd.files.json import read_json
from herd.files.writing import cannot_write, sync_folder
from herd.training.company import ALONE, Company, by_the_first
from herd.training.settings.loop import HARMLESS
from herd.training.settings.reading import differences, from_toml, to_toml

S = TypeVar("S")
CONFIG, FACTS, METRICS, TIMINGS, END, LOCK = "config.toml", "facts.json", "metrics.jsonl", "timings.jsonl", "end.json", ".lock"
MEASURED = ("_s", "_per_s", "_bytes")
"""Endings of the names of figures that are measured."""
HELD_OUT = "held_out."
"""What stands before the name of a figure of an evaluation."""


class State(Enum):
    """How a run stands."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def can_resume(self) -> bool:
        return self not in (State.RUNNING, State.FINISHED)


class Log:
    """A file of JSON lines that only grows, except that `cut` takes it back to an earlier length."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as problem:
            raise cannot_write(path, problem) from problem

    @property
    def num_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def add(self, line: Mapping[str, Any]) -> None:
        """One line. Numbers that JSON does not have become null. `CapacityError` for a full disk."""
        data = memoryview((json.dumps(_finite(line), separators=(",", ":")) + "\n").encode())
        try:
            while len(data):
                data = data[os.write(self._descriptor, data) :]
        except OSError as problem:
            raise cannot_write(self.path, problem) from problem

    def cut(self, num_bytes: int) -> None:
        """Takes away what was added after it had `num_bytes`. `FileProblem` if it is shorter."""
        if self.num_bytes < num_bytes:
            raise FileProblem(
                f"{self.path}: has {self.num_bytes} bytes, and had {num_bytes} when the checkpoint was made. It was changed or cut; "
                "put it back, or begin anew in another folder."
            )
        os.ftruncate(self._descriptor, num_bytes)

    def sync(self) -> None:
        """What was added survives a power failure."""
        try:
            os.fsync(self._descriptor)
        except OSError as problem:
            raise cannot_write(self.path, problem) from problem

    def close(self) -> None:
        os.close(self._descriptor)


class Run:
    """A run's folder, opened for the one process that works on it. `is_resumed`: it was there before. `notes`: what a person should
    know of how it was resumed. Of several processes that train together the first alone writes (`is_first`)."""

    def __init__(self, folder: Path, is_resumed: bool, notes: Sequence[str] = (), is_first: bool = True) -> None:
        self.folder = folder
        self.is_resumed = is_resumed
        self.notes = tuple(notes)
        self.is_first = is_first
        self._logs = (Log(folder / METRICS), Log(folder / TIMINGS)) if is_first else None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def num_bytes(self) -> tuple[int, int]:
        """How long metrics and timings are; the metrics are on the disk then."""
        if self._logs is None:
            return 0, 0
        self._logs[0].sync()
        return self._logs[0].num_bytes, self._logs[1].num_bytes

    def cut(self, metrics_bytes: int, timings_bytes: int) -> None:
        """Takes the logs back to where they were. What is missing of the timings is not missed."""
        if self._logs is not None:
            self._logs[0].cut(metrics_bytes)
            self._logs[1].cut(min(timings_bytes, self._logs[1].num_bytes))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs figures of a step, what is measured apart from what is computed."""
        if self._logs is None:
            return
        metrics, timings = self._logs
        metrics.add({"step": step} | {name: value for name, value in figures.items() if not name.endswith(MEASURED)})
        if measured := {name: value for name, value in figures.items() if name.endswith(MEASURED)}:
            timings.add({"step": step} | measured)

    def end(self, state: State, step: int, why: str = "") -> None:
        """Writes down how it ended."""
        if self.is_first:
            write_json(self.folder / END, {"state": state.value, "step": step, "why": why})

    @contextmanager
    def finishing(self, step: int) -> Iterator[None]:
        """While what was learned is written the run has not come to its end: where that fails or the process dies, it can go on."""
        (self.folder / END).unlink(missing_ok=True)
        try:
            yield
        except Exception as error:
            self.end(State.FAILED, step, f"{type(error).__name__}: {error}")
            raise
        self.end(State.FINISHED, step)

    def close(self) -> None:
        for log in self._logs or ():
            log.close()


@contextmanager
def open_run(
    folder: Path, settings: Any, facts: Mapping[str, Any], *, resume: bool = False, force: bool = False, company: Company = ALONE
) -> Iterator[Run]:
    """The folder of a new run, or of one that goes on.

    `settings`: a dataclass as `settings.read_settings` makes them. `facts`: see `facts.gathered`; what is under "data" and "model" has to
    be the same when a run is resumed; where there is none yet it begins, and a note says so. `force`: go on with other settings or data
    all the same, for runs that are resumed alone.

    `UsageError` if the folder is not empty, is in use, or holds a run of other settings; `FileProblem` if it cannot be written.
    """
    opened = by_the_first(company, lambda: _opened(folder, settings, facts, resume, force), str(folder))
    if opened is None:
        yield Run(folder, resume, is_first=False)
        return
    run, lock = opened
    try:
        yield run
    finally:
        run.close()
        os.close(lock)


def _opened(folder: Path, settings: Any, facts: Mapping[str, Any], resume: bool, force: bool) -> tuple[Run, int]:
    """The run, and the lock on its folder."""
    if force and not resume:
        raise UsageError("--force goes on with a run although its settings or data have changed; give it together with --resume.")
    _make(folder)
    lock = _locked(folder)
    try:
        is_there = (folder / CONFIG).is_file()
        notes: list[str] = []
        if not is_there:
            _begin(folder, settings, facts)
            notes = [f"{folder} held no run to go on with, so this one begins"] if resume else []
        elif not resume:
            raise UsageError(f"{folder} holds a run already ({_ended(folder).value}). Go on with it by --resume, or choose another folder.")
        else:
            notes = _continue(folder, settings, facts, force)
        return Run(folder, is_there, notes), lock
    except BaseException:
        os.close(lock)
        raise


def saved_settings(folder: Path, kind: type[S]) -> S:
    """The settings that a run was begun with. `UsageError` if there is no run."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no run: there is no {CONFIG} in it.") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise FileProblem(f"{folder / CONFIG}: cannot be read: {problem}.") from problem
    return from_toml(kind, text, str(folder / CONFIG))


def state_of(folder: Path) -> State:
    """How the run in a folder stands, without touching it."""
    return State.RUNNING if _is_locked(folder) else _ended(folder)


def _ended(folder: Path) -> State:
    try:
        return State(read_json(folder / END).get("state"))
    except (FileProblem, ValueError):
        return State.INTERRUPTED


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / CONFIG).is_file() and (folder / FACTS).is_file()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a log; one that its process did not finish is left out."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                with suppress(ValueError):
                    yield json.loads(line)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A small JSON file, whole or absent."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
    except FileExistsError:
        raise UsageError(f"{folder} is a file; a run needs a folder.") from None
    except OSError as problem:
        raise cannot_write(folder, problem) from problem


def _locked(folder: Path) -> int:
    strange = [path.name for path in folder.iterdir() if not (folder / CONFIG).is_file() and not _is_ours(path.name)]
    if strange:
        raise UsageError(f"{folder} is not empty: there is {strange[0]!r:.80} in it, and no run. Choose another folder.")
    lock = take_lock(folder / LOCK)
    if lock is None:
        owner = ""
        with suppress(OSError, ValueError):
            owner = f" by process {int((folder / LOCK).read_text())} of {platform.node()}"
        raise UsageError(f"{folder} is being worked on{owner}. Wait for it or stop it, or choose another folder.")
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
    return lock


def _is_locked(folder: Path) -> bool:
    if not (folder / LOCK).is_file():
        return False
    with suppress(FileProblem, OSError):
        lock = take_lock(folder / LOCK)
        if lock is None:
            return True
        os.close(lock)
    return False


def _is_ours(name: str) -> bool:
    """What a run leaves that died before its settings were written."""
    return name in (LOCK, FACTS) or (name.startswith(".") and name.endswith(".part"))


def _begin(folder: Path, settings: Any, facts: Mapping[str, Any]) -> None:
    _clean(folder)
    write_json(folder / FACTS, facts)
    with atomic_write(folder / CONFIG) as file:
        file.write(to_toml(settings).encode())


def _continue(folder: Path, settings: Any, facts: Mapping[str, Any], force: bool) -> list[str]:
    """Compares what is asked for with what the run was begun with; notes. `UsageError` lists what differs."""
    _clean(folder)
    was = read_json(folder / FACTS)
    changed = _changed_data(was, facts)
    before = saved_settings(folder, type(settings))
    changed += [line for line in differences(before, settings) if not _is_harmless(line)]
    if changed and not force:
        listed = "".join(f"\n  {line}" for line in changed)
        raise UsageError(
            f"{folder} was begun with other settings or data:{listed}\nGo on as it was begun, force it with --force (the result is then "
            "that of neither), or choose another folder."
        )
    notes = [f"{name}: {was.get(name)} then, {facts.get(name)} now; rounding may differ" for name in ("machine", "version") if
             name in was and was.get(name) != facts.get(name)]  # fmt: skip
    if changed or notes:
        write_json(folder / FACTS, {**was, "resumed": [*was.get("resumed", []), {"changed": changed, "notes": notes}]})
    if to_toml(before) != to_toml(settings):
        with atomic_write(folder / CONFIG) as file:
            file.write(to_toml(settings).encode())
    (folder / END).unlink(missing_ok=True)
    return [*changed, *notes]


def _changed_data(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Files whose contents are others than then, and another model."""
    old, new = was.get("data", {}), now.get("data", {})
    found = [f"{name}: its contents have changed" for name in old if name in new and old[name] != new[name]]
    found += [f"{name}: was used then and is not now" for name in old if name not in new]
    found += [f"{name}: is used now and was not then" for name in new if name not in old]
    if was.get("model") != now.get("model"):
        found.append(f"the model: {was.get('model')} then, {now.get('model')} now")
    return found


def _is_harmless(line: str) -> bool:
    name = line.partition(":")[0]
    return any(f".{name}".endswith(f".{each}") for each in HARMLESS)


def _clean(folder: Path) -> None:
    """Removes unfinished files and folders that a process left which died."""
    for path in folder.iterdir():
        if path.name.startswith(".") and path.name.endswith(".part"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0.0:
        return None
    return {key: _finite(each) for key, each in value.items()} if isinstance(value, Mapping) else value
