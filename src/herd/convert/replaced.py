"""A checkpoint with some of its weights replaced by ones in memory, written in any layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.stored import InMemory
from herd.convert.conversion import Report, write_opened
from herd.convert.shaping import Shaping
from herd.errors import UsageError
from herd.family.progress import Progress, silent
from herd.models.weights import Adapted, Matrix


def write_replaced(
    destination: Path, checkpoint: Checkpoint, leaves: Mapping[str, Matrix], *, to: str = "gguf", progress: Progress = silent
) -> Report:
    """Everything else is as in the checkpoint. `UsageError` for weights that carry adapters, and as `convert`."""
    sources = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, Adapted):
            raise UsageError(f"{name} carries an adapter; merge it first.")
        sources[name] = InMemory(leaf)
    return write_opened(checkpoint.with_sources(sources), destination, to, Shaping(), progress)
