"""What the terminal shows while it waits, and how results are printed. Bars and spinners: on stderr, on a terminal only."""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from herd.evals.rows import Told
    from herd.family.progress import Progress

_SPINNER_AFTER_S = 0.4
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line. Numbers that JSON does not have become null."""
    click.echo(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0.0:
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def say(text: str) -> None:
    """Prints a piece of an answer at once. A terminal never gets control characters from a model."""
    sys.stdout.write(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if is_terminal(sys.stdout) else text)
    sys.stdout.flush()


@contextmanager
def fetching() -> Iterator[Progress]:
    """A progress callback for downloads that draws one bar after another."""
    from herd.family.progress import silent

    if not is_terminal(sys.stderr):
        yield silent
        return
    shown = _Bars()
    try:
        yield shown
    finally:
        shown.close()


class _Bars:
    """Draws the progress of downloads; nothing is imported or shown before there is some."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._name = ""

    def __call__(self, name: str, done_bytes: int, total_bytes: int) -> None:
        if self._bars is None:
            self._bars = _new_bars()
            self._bars.start()
        if name != self._name:
            for task in self._bars.tasks:
                self._bars.update(task.id, visible=task.total is not None, completed=task.total or 0)
            self._name = name
            self._bars.add_task(name, total=total_bytes or None)
        self._bars.update(self._bars.task_ids[-1], completed=done_bytes, total=total_bytes or None)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()


def _new_bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def counting(name: str) -> Iterator[Told]:
    """A callback for work that is counted, drawn as one bar."""
    from herd.evals.rows import nobody

    if not is_terminal(sys.stderr):
        yield nobody
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=None)

        def told(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield told


@contextmanager
def spinning(what: str) -> Iterator[None]:
    """Shows that something is going on, if it takes long enough to be noticed."""
    if not is_terminal(sys.stderr):
        yield
        return
    finished = threading.Event()

    def spin() -> None:
        if finished.wait(_SPINNER_AFTER_S):
            return
        for mark in itertools.cycle("|/-\\"):
            sys.stderr.write(f"\r{mark} {what} ")
            sys.stderr.flush()
            if finished.wait(0.1):
                break
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

    spinner = threading.Thread(target=spin, name="herd-spinner", daemon=True)
    spinner.start()
    try:
        yield
    finally:
        finished.set()
        spinner.join()


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Plain columns, as wide as they must be; no colour and no lines, so that other programs can read them."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
