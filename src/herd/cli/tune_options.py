"""What the commands of `herd tune` share: options, and what is seen of a run while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from herd.cli.options import offline_option

if TYPE_CHECKING:
    from herd.training.loop import Told

F = TypeVar("F", bound=Callable[..., Any])
PLAIN_LINE_S = 10.0
"""Seconds between two lines where no terminal shows a bar."""


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


run_options: Callable[[Any], Any] = _all(
    click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="The run's folder.  [default: in runs/]"),
    click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="Settings of the run, as TOML."),
    click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="One setting, such as loop.clip=0.5. Can be repeated."),
    click.option("--resume", is_flag=True, help="Go on with the run in the folder, from its newest checkpoint."),
    click.option("--force", is_flag=True, help="With --resume: although settings or data have changed."),
    click.option("--seed", type=int, metavar="N", help="What everything that is drawn comes from.  [default: 0]"),
    click.option("--steps", type=int, metavar="N", help="Steps of the run."),
    click.option("--lr", type=float, metavar="X", help="The peak learning rate."),
)
"""Of every run."""

student_options: Callable[[Any], Any] = _all(
    click.option("--lora/--full", "is_lora", default=None, help="Learn low-rank updates, or every weight.  [default: full]"),
    click.option("--rank", type=int, metavar="N", help="With --lora: columns of each update.  [default: 16]"),
    click.option("--dora", is_flag=True, default=None, help="With --lora: learn the lengths of rows too."),
    click.option("--base", metavar="FORMAT", help="With --lora: bring the frozen model into blocks first: q4_0, q4_k, q8_0, ... (QLoRA)."),
    click.option("--qat", is_flag=True, default=None, help="Learn for four bits."),
    click.option("--dtype", metavar="NAME", help="What is computed in: float32, bfloat16.  [default: what is fast here]"),
    click.option("--device", metavar="NAME", help="cpu, cuda or cuda:1.  [default: cpu]"),
    click.option("--recompute", is_flag=True, default=None, help="Compute layers twice, in far less memory."),
    offline_option,
)
"""What of a model is learned."""

NAMES: Mapping[str, str] = {
    "seed": "loop.seed",
    "steps": "loop.schedule.steps",
    "rank": "student.lora.rank",
    "dora": "student.lora.dora",
    "base": "student.base",
    "qat": "student.qat",
    "dtype": "student.dtype",
    "device": "student.device",
    "recompute": "student.recompute",
    "lr": "lr",
}


def named(options: Mapping[str, Any], names: Mapping[str, str] = NAMES) -> dict[str, Any]:
    """The options that were given, by the names of their settings."""
    found = {names[name]: value for name, value in options.items() if name in names and value not in (None, ())}
    if options.get("is_lora") is not None:
        found["student.method"] = "lora" if options["is_lora"] else "full"
    if "steps" in options and options["steps"] is not None and "epochs" in options:
        found["epochs"] = 0.0
    return found


def place_of(out: Path | None, data: tuple[str, ...]) -> Path:
    """The run's folder: what was asked for, or a name after the data."""
    if out is not None:
        return out
    stem = Path(data[0]).name.split(".")[0] if data else "run"
    return Path("runs") / (stem or "run")


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
    """Loss, speed, time left and memory of a step."""
    from herd.cli.output import size

    parts = [f"loss {news.figures['loss']:.4f}"] if "loss" in news.figures else []
    parts += [f"{name} {news.figures[name]:.3g}" for name in ("reward", "accuracy") if name in news.figures]
    parts.append(f"{news.tokens_per_s:,.0f} tokens/s")
    if news.left_s is not None:
        parts.append(f"{time_of(news.left_s)} left")
    return "  ".join([*parts, size(news.peak_bytes)])


def time_of(seconds: float) -> str:
    """Seconds as people read them: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
