"""What is seen of a run of training while it goes on, of `herd tune` and `herd train` alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from herd.training.running.loop import Told

PLAIN_LINE_S = 10.0
"""Seconds between two lines where no terminal shows a bar."""
SHOWN = ("reward", "answers", "accuracy", "z", "soft", "expert_load_max", "gap")
"""Figures of a step that are shown beside its loss, of recipes that have them."""


@contextmanager
def watching(name: str) -> Iterator[Callable[[Told], None]]:
    """Shows how far a run is: a line that moves in a terminal, else a line now and then."""
    from herd.cli.output import is_terminal

    if not is_terminal(sys.stderr):
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None, told="")

        def told(news: Told) -> None:
            if news.note:
                bars.console.print(news.note, markup=False, highlight=False)
            if news.is_evaluation:
                bars.console.print(f"step {news.step}: held out {figures_line(news)}", markup=False, highlight=False)
            elif news.figures:
                bars.update(task, total=news.steps, completed=news.step, told=status_line(news))

        yield told


def show_curve(folder: Path) -> None:
    """The loss of a run, drawn."""
    from herd.training.running.curves import in_dots, panels, series_of

    for name, steps, held_out in panels(series_of(folder))[:1]:
        click.echo(in_dots(name, steps, held_out))


class _Lines:
    """For logs: a line at the first step, every ten seconds, and at the last."""

    def __init__(self) -> None:
        self._last = -PLAIN_LINE_S

    def __call__(self, news: Told) -> None:
        if news.note:
            click.echo(news.note, err=True)
        if news.is_evaluation:
            click.echo(f"step {news.step}: held out {figures_line(news)}", err=True)
        elif news.figures and (news.step == news.steps or time.monotonic() - self._last >= PLAIN_LINE_S):
            self._last = time.monotonic()
            click.echo(f"step {news.step} of {news.steps}: {status_line(news)}", err=True)


def figures_line(news: Told) -> str:
    """All figures of an evaluation."""
    return "  ".join(f"{name} {value:.4g}" for name, value in news.figures.items())


def status_line(news: Told) -> str:
    """Loss, speed, time left and memory of a step, as far as they are told."""
    from herd.planner.units import seconds, size

    parts = [f"loss {news.figures['loss']:.4f}"] if "loss" in news.figures else []
    parts += [f"{name} {news.figures[name]:.3g}" for name in SHOWN if name in news.figures]
    digits = 0 if news.tokens_per_s >= 10 else 1
    parts += [f"{news.tokens_per_s:,.{digits}f} tokens/s"] if news.tokens_per_s else []
    if news.left_s:
        parts.append(f"{seconds(news.left_s)} left")
    return "  ".join([*parts, size(news.peak_bytes)] if news.peak_bytes else parts)
