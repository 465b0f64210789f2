"""An update put together with its matrix: W + scale up down, with DoRA's rows brought to their lengths. Summed in float32, rounded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints.stored import Bytes, InMemory, Source, StoredTensor, num_rows, of_values
from herd.dtypes import F32, DType
from herd.models.weights import Blocks, Dense, Update
from herd.quant import dequantize, quantize

CHUNK_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class Merged:
    """A weight with its update, piece by piece. In the base's number format, or in float32 over blocks and where `is_wide`."""

    base: Source
    update: Update
    magnitude: Dense | None = None
    is_wide: bool = False

    @property
    def dtype(self) -> DType:
        return F32 if self.is_wide or self.base.dtype.is_block else self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.base.tensors

    def read(self, first: int, last: int) -> Bytes:
        return _merged(self.base.dtype, self.base.read(first, last), self, first, last)

    def rows(self) -> Bytes:
        return self.read(0, num_rows(self.shape))


def merged(base: Dense | Blocks, update: Update, magnitude: Dense | None = None) -> Dense:
    """The same of a loaded weight."""
    dtype = F32 if isinstance(base, Blocks) else base.dtype
    data = np.asarray(base.data).reshape(base.shape[0], -1)
    return Dense(dtype, base.shape, _merged(base.dtype, data, Merged(InMemory(base), update, magnitude), 0, base.shape[0]))


def _merged(stored: DType, data: Bytes, of: Merged, first: int, last: int) -> Bytes:
    """Rows `first` to `last`, whose stored bytes are `data`."""
    columns = of.shape[-1]
    down, up = _values(of.update.down), _values(of.update.up)
    lengths = None if of.magnitude is None else _values(of.magnitude)
    out = np.empty((last - first, of.dtype.row_bytes(columns)), np.uint8)
    step = max(1, CHUNK_VALUES // columns)
    for at in range(0, last - first, step):
        piece = data[at : at + step]
        rows = slice(first + at, first + at + len(piece))
        values = dequantize(stored, piece, (len(piece), columns)) + np.float32(of.update.scale) * (up[rows] @ down)
        if lengths is not None:
            values *= (lengths[rows] / np.linalg.norm(values, axis=1))[:, None]
        out[at : at + step] = quantize(of.dtype, values)
    return out


def _values(leaf: Dense) -> NDArray[np.float32]:
    return dequantize(leaf.dtype, leaf.data, leaf.shape)


def stacked(earlier: Mapping[str, Update], later: Mapping[str, Update]) -> dict[str, Update]:
    """Updates of one model put one upon another: those of which each is the sum of both. All have the greatest rank of the earlier ones
    and that of the later ones together, and one scale; where one has no update or a lower rank, the rest of its part is 0."""
    scale = next(iter(later.values())).scale
    ranks = [max(update.down.shape[0] for update in each.values()) for each in (earlier, later)]
    found = {}
    for name in (*earlier, *(each for each in later if each not in earlier)):
        shape = (earlier.get(name) or later[name]).up.shape[0], (earlier.get(name) or later[name]).down.shape[1]
        down, up = np.zeros((sum(ranks), shape[1]), np.float32), np.zeros((shape[0], sum(ranks)), np.float32)
        for update, at in zip((earlier.get(name), later.get(name)), (0, ranks[0]), strict=True):
            if update is not None:
                mine = slice(at, at + update.down.shape[0])
                down[mine], up[:, mine] = _values(update.down), _values(update.up) * np.float32(update.scale / scale)
        found[name] = Update(of_values(down).leaf, of_values(up).leaf, scale)
    return found
