"""Runs inputs in worker processes with limits, and collects what went wrong."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from herd.errors import FileProblem

LIMIT_S = 1.0
MORE_BYTES = 256 << 20
SILENCE_S = 20.0
FORMATS = ("gguf", "safetensors", "pth")


@dataclass
class Outcome:
    """What came of the inputs of one format. `failures` name the number of the input, so that `--only` repeats it."""

    target: str
    seed: int
    inputs: int = 0
    accepted: int = 0
    compared: int = 0
    refused_by_official: int = 0
    failures: list[str] = field(default_factory=list)
    open_seconds: float = 0.0
    slowest_ms: float = 0.0
    memory_growth_mib: float = 0.0

    def add(self, other: Outcome) -> None:
        for name in ("inputs", "accepted", "compared", "refused_by_official", "open_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("slowest_ms", "memory_growth_mib"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.failures += other.failures


class _TimeUp(BaseException):
    pass


def target_named(name: str) -> Any:
    if name == "gguf":
        from fuzzing.gguf_target import Target as Gguf

        return Gguf()
    if name == "pth":
        from fuzzing.pth_target import Target as Pth

        return Pth()
    from fuzzing.safetensors_target import Target as Safetensors

    return Safetensors()


def fuzz(name: str, count: int, seed: int = 0, workers: int = 2) -> Outcome:
    """Try inputs 0 to `count` of `seed`, shared out over worker processes."""
    outcome = Outcome(name, seed)
    context = multiprocessing.get_context("fork")
    target = target_named(name)
    running = [_Worker(context, target, seed, range(first, count, workers)) for first in range(workers)]
    while running:
        for worker in list(running):
            died = worker.poll(outcome)
            if died is None:
                continue
            running.remove(worker)
            if died >= 0:
                rest = range(died + worker.numbers.step, count, worker.numbers.step)
                running.append(_Worker(context, target, seed, rest))
    return outcome


class _Worker:
    """One process. `poll` returns None while it works, -1 when it is done, and the number of the input that killed it."""

    def __init__(self, context: Any, target: Any, seed: int, numbers: range) -> None:
        self.numbers = numbers
        self._current = context.Value("q", -1, lock=False)
        self._results, inlet = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(target, seed, numbers, self._current, inlet))
        self._process.start()
        inlet.close()
        self._seen, self._since = -2, time.monotonic()

    def poll(self, outcome: Outcome) -> int | None:
        try:
            if self._results.poll(0.05):
                outcome.add(self._results.recv())
                self._process.join()
                return -1
        except EOFError:
            pass
        current = int(self._current.value)
        if current != self._seen:
            self._seen, self._since = current, time.monotonic()
        if self._process.is_alive() and time.monotonic() - self._since < SILENCE_S:
            return None
        what = "hung" if self._process.is_alive() else "died"
        self._process.kill()
        self._process.join()
        outcome.failures.append(f"input {current}: the worker {what}, exit code {self._process.exitcode}; its counts are lost")
        return current


def _work(target: Any, seed: int, numbers: range, current: Any, inlet: Connection) -> None:
    outcome = Outcome(target.name, seed)
    _limit_memory()
    signal.signal(signal.SIGALRM, _time_up)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        current.value = number
        _try(target, number, seed, outcome)
    outcome.memory_growth_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    inlet.send(outcome)
    inlet.close()
    os._exit(0)


def _try(target: Any, number: int, seed: int, outcome: Outcome) -> None:
    data = target.make(random.Random(f"{target.name} {seed} {number}"))
    outcome.inputs += 1
    start, start_cpu = time.perf_counter(), time.process_time()
    try:
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            opened = target.open(data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            took = time.perf_counter() - start
            outcome.open_seconds += time.process_time() - start_cpu
            outcome.slowest_ms = max(outcome.slowest_ms, took * 1000)
    except FileProblem as problem:
        if not str(problem).isprintable() and not str(problem).replace("\n", "").isprintable():
            outcome.failures.append(f"input {number}: the message holds characters that cannot be printed: {problem!a}")
        return
    except BaseException as problem:
        outcome.failures.append(f"input {number}: {type(problem).__name__}: {problem!a:.200}")
        return
    outcome.accepted += 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 10 * LIMIT_S)
        try:
            difference = target.compare(data, opened)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException as problem:
        outcome.refused_by_official += 1
        outcome.failures.append(f"input {number}: accepted, and the official reader fails: {type(problem).__name__}: {problem!a:.160}")
        return
    outcome.compared += 1
    if difference is not None:
        outcome.failures.append(f"input {number}: {difference}")


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MORE_BYTES, now + MORE_BYTES))


def _time_up(_signal: int, _frame: object) -> None:
    raise _TimeUp(f"more than {LIMIT_S:g} s")


def main(arguments: Sequence[str]) -> int:
    """The command line of `scripts/fuzz`."""
    parser = argparse.ArgumentParser(description="Structure-aware fuzzing of the file readers; needs Linux.")
    parser.add_argument("formats", nargs="*", metavar="gguf | safetensors | pth", help="all when none is named")
    parser.add_argument("--count", type=int, default=100_000, help="mutations of each format (100000)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same inputs (0)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, help="open this one input here and show its traceback")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.formats) - set(FORMATS):
        parser.error(f"unknown format {sorted(unknown)[0]!r}; known are {', '.join(FORMATS)}")
    failed = False
    for name in chosen.formats or FORMATS:
        if chosen.only is not None:
            return _show(name, chosen.only, chosen.seed)
        outcome = fuzz(name, chosen.count, chosen.seed, chosen.workers)
        for failure in outcome.failures[:20]:
            print(f"{name} {failure}", file=sys.stderr)
        figures = {**asdict(outcome), "failures": len(outcome.failures)}
        figures["opened_per_second"] = round(outcome.inputs / max(outcome.open_seconds, 1e-9))
        print(json.dumps({key: round(value, 2) if isinstance(value, float) else value for key, value in figures.items()}), flush=True)
        failed |= bool(outcome.failures) or outcome.inputs != chosen.count
    return 1 if failed else 0


def _show(name: str, number: int, seed: int) -> int:
    target = target_named(name)
    data = target.make(random.Random(f"{target.name} {seed} {number}"))
    try:
        print("accepted:", target.compare(data, target.open(data)) or "as the official reader")
    except FileProblem as problem:
        print("refused:", problem)
    except Exception:
        traceback.print_exc()
        return 1
    return 0
