"""This process's part of each weight, read without the rest: rows, columns of rows, or both of stacked matrices."""

from __future__ import annotations

from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.sources import Part
from herd.checkpoints.stored import InMemory, Source
from herd.dtypes import DType
from herd.errors import UsageError
from herd.models.division import Division
from herd.models.weights import Adapted, Dense, Matrix, Update, stored


def divided(checkpoint: Checkpoint, division: Division) -> Checkpoint:
    """The same checkpoint with this process's part of each weight. `UsageError` names a weight whose blocks would be cut."""
    names = [spec.name for spec in checkpoint.specs]
    parts = {name: part for name in names if (part := _part(name, checkpoint.source(name), division)) is not None}
    return checkpoint.with_sources(parts)


def part_of(name: str, whole: Matrix, division: Division) -> Matrix:
    """This process's part of a weight in memory, a view of it where that can be. `UsageError` as `divided`."""
    if isinstance(whole, Adapted):
        update = part_of_update(name, Update(whole.down, whole.up, whole.scale), division)
        base = part_of(name, whole.base, division)
        assert not isinstance(base, Adapted)
        return update.over(base, name)
    part = _part(name, InMemory(whole), division)
    return whole if part is None else stored(part.dtype, part.shape, part.rows())


def part_of_update(name: str, whole: Update, division: Division) -> Update:
    """This process's part of the low-rank update of a weight."""
    down, up = division.update_axes(name)
    return Update(_cut(name, whole.down, division, down), _cut(name, whole.up, division, up), whole.scale)


def _cut(name: str, whole: Dense, division: Division, axis: int | None) -> Dense:
    if axis is None:
        return whole
    part = Part(InMemory(whole), axis, *division.span(name, whole.shape[axis]))
    return Dense(part.dtype, part.shape, part.rows())


def _part(name: str, whole: Source, division: Division) -> Part | None:
    """None for a weight that is whole in each process."""
    axis = division.axis(name)
    if axis is None:
        return None
    first, last = division.span(name, whole.shape[axis])
    if axis == len(whole.shape) - 1:
        _check_whole_blocks(name, whole.dtype, whole.shape[axis], last - first, division.count)
    return Part(whole, axis, first, last)


def _check_whole_blocks(name: str, dtype: DType, columns: int, each: int, count: int) -> None:
    if each % dtype.block:
        raise UsageError(
            f"{name} has {columns} columns in blocks of {dtype.block} ({dtype.name.upper()}), which {count} would cut: each "
            f"would have {each}. Take fewer processes, or the model in a format of smaller blocks, or of none."
        )
