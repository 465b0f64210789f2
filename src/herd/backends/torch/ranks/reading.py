"""A process's part of the weights, with the part of an adapter over them."""

from __future__ import annotations

from pathlib import Path

from herd.checkpoints.adapter import Adapter, open_adapter
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.divided import divided, part_of, part_of_update
from herd.models.division import Division
from herd.models.weights import Leaf, Matrix


def divided_leaf(checkpoint: Checkpoint, division: Division, folder: str | None) -> Leaf:
    """Reads this process's part of each weight, and not the rest. `folder`: an adapter's. `UsageError` names a weight whose blocks would be
    cut; errors of the adapter as `open_adapter`."""
    parts = divided(checkpoint, division)
    if folder is None:
        return parts.leaf
    adapter = open_adapter(Path(folder), checkpoint.config)
    return lambda name: _adapted(name, checkpoint, parts, adapter, division)


def _adapted(name: str, checkpoint: Checkpoint, parts: Checkpoint, adapter: Adapter, division: Division) -> Matrix:
    update = adapter.factors.get(name)
    if update is None:
        return parts.leaf(name)
    if name in adapter.magnitudes:  # DoRA looks at whole rows of the sum, so this one is made whole first
        return part_of(name, adapter.leaf_over(checkpoint.leaf)(name), division)
    return part_of_update(name, update, division).over(parts.leaf(name), name)


def drop_copied(checkpoint: Checkpoint, division: Division) -> None:
    """Gives the memory of mapped weights back of which this process has taken its columns: those were copied, and with them all rows were
    read."""
    for spec in checkpoint.specs:
        if len(spec.shape) > 1 and division.axis(spec.name) == len(spec.shape) - 1:
            for tensor in checkpoint.source(spec.name).tensors:
                tensor.file.drop_pages(tensor.offset, tensor.num_bytes)
