"""Models that training from text begins with, or is told by: what every command takes for one, where it is here already."""

from __future__ import annotations

from pathlib import Path

from herd.checkpoints.adapter import WEIGHTS
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.learned import open_learned
from herd.checkpoints.trained import adapter_in
from herd.family.finding import find_model


def open_here(named: str) -> Checkpoint:
    """A name that was fetched, a file, a folder, or the folder of a run, whose updates are in its weights then. `UsageError` for what is
    not here."""
    return open_learned(_place(named), _place, is_wide=True)


def learned_files(named: str) -> tuple[Path, ...]:
    """The files of the updates that a run's folder has over its model."""
    adapter = adapter_in(_place(named)) if named else None
    return () if adapter is None else (adapter / WEIGHTS,)


def _place(named: str) -> Path:
    return find_model(named, is_fetched=False).path
