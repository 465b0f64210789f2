"""The folder of a finished run of training as one checkpoint: what it has learned, put together with the model that it began with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from herd.checkpoints.adapter import open_adapter
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.open import open_checkpoint
from herd.checkpoints.trained import trained_in


def open_learned(path: Path, find: Callable[[str], Path], *, is_wide: bool = False) -> Checkpoint:
    """The checkpoint at `path`, which may be the folder of a run, or of an adapter. `find` knows where the model is that a run began with.
    is_wide: what an adapter has changed is float32, nothing rounded; else as the model is stored. `FileProblem` as of `trained_in` and
    of opening."""
    run = trained_in(path)
    if run is None:
        return open_checkpoint(path)
    checkpoint = open_learned(find(run.model), find, is_wide=is_wide)
    try:
        return checkpoint if run.adapter is None else open_adapter(run.adapter, checkpoint.config).merged_into(checkpoint, is_wide=is_wide)
    except BaseException:
        checkpoint.close()
        raise
