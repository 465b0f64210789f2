"""How far a training run is, as lines that people read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from herd.training.running.loop import Told

EVERY_S = 5.0
SHOWN = ("loss", "z", "soft", "expert_load_max")


def printed() -> Callable[[Told], None]:
    """Prints a line every few seconds, for the first and the last step, for evaluations and for notes."""
    last = [0.0]

    def told(told: Told) -> None:
        now = time.monotonic()
        is_due = told.step <= 1 or told.step >= told.steps or now - last[0] >= EVERY_S
        if told.note:
            click.echo(told.note, err=True)
        if told.figures and (told.is_evaluation or is_due):
            click.echo(line_of(told))
            last[0] = now

    return told


def line_of(told: Told) -> str:
    """step 120/1000  loss 3.214  5,300 tokens/s  2 min left  1.2 GB"""
    figures = "  ".join(f"{name} {told.figures[name]:.4g}" for name in SHOWN if name in told.figures)
    parts = [f"step {told.step:,}/{told.steps:,}", f"{'held out: ' if told.is_evaluation else ''}{figures}"]
    if told.tokens_per_s and not told.is_evaluation:
        parts.append(f"{told.tokens_per_s:,.0f} tokens/s")
    if told.left_s is not None and not told.is_evaluation:
        parts.append(f"{duration(told.left_s)} left")
    if told.peak_bytes and not told.is_evaluation:
        parts.append(f"{told.peak_bytes / 1e9:.1f} GB")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.5 h, 12 days"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.0f} days"
