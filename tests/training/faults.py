"""Runs that die: a tiny recipe, and file operations that kill the process, lose what was not synced, or find the disk full.

Each run is a forked child of a process that has loaded torch once and started no threads, so that a case takes a fraction of a second.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from herd.errors import CapacityError, HerdError
from herd.models.weights import Kind
from herd.training.running.loop import Told, silent, train
from herd.training.running.optim import OptimiserSettings, make_optimiser
from herd.training.running.runs import open_run
from herd.training.schedules import Schedule
from herd.training.settings.loop import LoopSettings

OUTCOMES = {"kill": -signal.SIGKILL, "power": -signal.SIGKILL, "full": CapacityError.exit_code}
"""How a process ends at a file operation that goes wrong so, if it does not go on."""
WIDTH, TOKENS = 6, 8
STEPS = 12
SETTINGS = LoopSettings(
    schedule=Schedule(lr=0.05, steps=STEPS, warmup=2), evaluate_every=4, save_every=3, save_minutes=0, keep_last=2, keep_best=True, seed=5
)
MUON = OptimiserSettings(name="muon", weight_decay=0.01)
KINDS = {"matrix": Kind.MATRIX, "bias": Kind.BIAS}
FACTS: Mapping[str, Any] = {"data": {"numbers": {"bytes": 1, "sha256": "1"}}, "model": "", "machine": {}, "version": {}}


class Lines:
    """A line through points, with dropout (torch's own random numbers) and a running mean of losses (state of the recipe's own)."""

    def __init__(self, width: int = WIDTH, bad: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(3)
        self.parameters = {
            "matrix": torch.nn.Parameter(torch.randn(width, width, generator=generator)),
            "bias": torch.nn.Parameter(torch.zeros(width)),
        }
        self.mean = torch.zeros((), dtype=torch.float64)
        self.seen = 0
        self.bad = bad

    def step(self, number: int) -> dict[str, float]:
        x, y = self._points(number)
        out = functional.dropout(x, 0.3) @ self.parameters["matrix"].T + self.parameters["bias"]
        loss = (out - y).square().mean() + 0.01 * self.mean.float()
        if number in self.bad:
            loss = loss * float("nan")
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if number not in self.bad:
            self.mean = 0.9 * self.mean + 0.1 * value
        self.seen += TOKENS
        return {"loss": value, "tokens": TOKENS, "mean": float(self.mean)}

    def evaluate(self, number: int) -> dict[str, float]:
        x, y = self._points(10**6)
        with torch.no_grad():
            return {"loss": float((x @ self.parameters["matrix"].T + self.parameters["bias"] - y).square().mean())}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"mean": self.mean}, {"seen": self.seen}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.mean, self.seen = tensors["mean"], values["seen"]

    def batch(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        x, y = self._points(number)
        return {"x": x, "y": y}, {"source": f"points of step {number}"}

    def _points(self, number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(number)
        width = self.parameters["bias"].numel()
        return torch.randn(TOKENS, width, generator=generator), torch.randn(TOKENS, width, generator=generator)


def run(folder: Path, told: Callable[[Told], None] = silent, settings: LoopSettings = SETTINGS, recipe: Lines | None = None) -> None:
    """Begins a run or goes on with it, to its end."""
    recipe = recipe or Lines()
    optimiser = make_optimiser(MUON, KINDS)
    with open_run(folder, settings, FACTS, resume=(folder / "config.toml").exists()) as opened:
        train(recipe, opened, settings, optimiser, told)


def result(folder: Path) -> dict[str, str]:
    """Digests of what a run has come to: the files of its last checkpoint, and its log. Also asserts that nothing else lies there."""
    checkpoints = sorted((folder / "checkpoints").iterdir())
    assert all(path.name.startswith("step-") for path in checkpoints), f"litter: {[path.name for path in checkpoints]}"
    strange = [path.name for path in folder.iterdir() if path.name.endswith(".part")]
    assert not strange, f"litter: {strange}"
    files = [*checkpoints[-1].glob("*.safetensors"), folder / "metrics.jsonl"]
    names = {"checkpoints": hashlib.sha256(" ".join(path.name for path in checkpoints).encode()).hexdigest()}
    return names | {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked child: its exit code, or minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        except HerdError as error:
            code = error.exit_code
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killed_after(seconds: float, work: Callable[[], None]) -> int:
    """As `in_child`, killed from outside when the time is up."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            work()
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class Disk:
    """Stands between Python and the system's file operations. What is written below `root` is counted; at operation number `at`
    something happens. It also knows what a loss of power would take: bytes of files that were not synced, and names given since
    their folder was."""

    OPERATIONS = ("open", "write", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "ftruncate")

    def __init__(self, root: Path, at: int, happens: str) -> None:
        self.root, self.at, self.happens = str(root), at, happens
        self.count = 0
        self._real = {name: getattr(os, name) for name in self.OPERATIONS}
        self._paths: dict[int, str] = {}
        self._synced: dict[str, int] = {}  # bytes of each file that the disk has
        self._renamed: list[tuple[str, str]] = []  # since the folder was synced

    def install(self) -> None:
        """Takes effect for the rest of this process."""
        for name in self.OPERATIONS:
            setattr(os, name, self._standing_in_for(name))

    def _standing_in_for(self, name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            path = self._path_of(arguments[0], named.get("dir_fd"))
            if not path.startswith(self.root) or (name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR)):
                return self._done(name, path, arguments, named)
            self.count += 1
            if self.count == self.at:
                self._happen(name, arguments)
            return self._done(name, path, arguments, named)

        return operation

    def _path_of(self, what: Any, folder: int | None) -> str:
        if isinstance(what, int):
            return self._paths.get(what, "")
        return os.path.join(self._paths[folder], what) if folder is not None else os.path.abspath(os.fspath(what))

    def _done(self, name: str, path: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        value = self._real[name](*arguments, **named)
        if name == "open":
            self._paths[value] = path
        elif name == "fsync":
            if os.path.isdir(path):
                self._renamed = [(old, new) for old, new in self._renamed if os.path.dirname(new) != path]
            else:
                self._synced[path] = os.path.getsize(path)
        elif name in ("replace", "rename"):
            self._renamed.append((path, os.path.abspath(arguments[1])))
            moved = {each: path_size for each, path_size in self._synced.items() if each == path or each.startswith(path + os.sep)}
            self._synced |= {os.path.abspath(arguments[1]) + each[len(path) :]: size for each, size in moved.items()}
        elif name == "ftruncate":
            self._synced[path] = min(self._synced.get(path, arguments[1]), arguments[1])
        return value

    def _happen(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self.happens == "full":
            if name in ("open", "write", "fsync", "mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        if name == "write":  # a torn one
            self._real["write"](arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self.happens == "power":
            self._lose()
        os.kill(os.getpid(), signal.SIGKILL)

    def _lose(self) -> None:
        """What was not synced is gone: names first, newest first, then bytes."""
        for old, new in reversed(self._renamed):
            if os.path.isdir(new) and not os.path.exists(old):
                self._real["rename"](new, old)
        for folder, _, files in os.walk(self.root):
            for file in files:
                path = os.path.join(folder, file)
                kept = self._synced.get(path)
                if kept is None and not path.endswith(".lock"):
                    os.truncate(path, os.path.getsize(path) // 2)
                elif kept is not None and kept < os.path.getsize(path):
                    os.truncate(path, kept)


def with_disk(folder: Path, at: int, happens: str) -> tuple[int, int]:
    """A run whose operation number `at` goes wrong: its exit code, and the number of operations if none did."""
    read, write = os.pipe()

    def work() -> None:
        disk = Disk(folder, at, happens)
        disk.install()
        run(folder)
        os.write(write, disk.count.to_bytes(8, "little"))

    code = in_child(work)
    os.close(write)
    data = os.read(read, 8)
    os.close(read)
    return code, int.from_bytes(data, "little")


def moments(seed: int, count: int, longest_s: float) -> Iterator[float]:
    """Random moments to be killed at."""
    numbers = random.Random(seed)
    return (numbers.uniform(0, longest_s) for _ in range(count))
