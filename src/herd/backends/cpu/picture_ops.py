"""`PictureOps` on native products: the encoders of pictures, and classifiers, on the processor.

What is a matrix product, attention or a long row of exponentials runs natively on all threads; the rest (moving rows, adding)
is numpy, shared with the reference. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from herd import _core
from herd.backends.cpu.packed import PackedAdapted, PackedMatrix, PackedVector
from herd.backends.reference.arrays import Arrays
from herd.backends.reference.picture_ops import NumpyPictureOps
from herd.models.ops import NO_ALIASES

Floats = NDArray[np.float32]


class PackedArrays(Arrays):
    """Values of packed vectors, and rows of packed matrices."""

    def __init__(self, machine: _core.Machine) -> None:
        super().__init__(np.dtype(np.float32), keep_bytes=0)
        self._machine = machine

    def get(self, leaf: PackedVector) -> Floats:  # type: ignore[override]  # the leaves of this backend are packed
        return np.asarray(leaf.values, np.float32)

    def rows(self, leaf: PackedMatrix, indices: NDArray[np.int64]) -> Floats:  # type: ignore[override]
        y_ID = np.empty((len(indices), leaf.shape[1]), np.float32)
        for row, index in zip(y_ID, indices, strict=True):
            leaf.native.row(self._machine, int(index), row)
        return y_ID


class CpuPictureOps(NumpyPictureOps):
    """`PictureOps` on packed leaves."""

    def __init__(self, machine: _core.Machine) -> None:
        super().__init__(PackedArrays(machine), np.dtype(np.float32))
        self._machine = machine

    def embed(  # type: ignore[override]
        self, tokens_T: Sequence[int], table: PackedMatrix | PackedAdapted, *, aliases: Mapping[int, int] = NO_ALIASES
    ) -> Floats:
        rows = np.asarray([aliases.get(int(token), int(token)) for token in tokens_T], np.int64)
        arrays: PackedArrays = self._arrays  # type: ignore[assignment]
        if isinstance(table, PackedMatrix):
            return arrays.rows(table, rows)
        assert table.down_transposed is not None, "a table was packed as one"
        return arrays.rows(table.base, rows) + self.linear(arrays.rows(table.up, rows), table.down_transposed)

    def linear(self, x: Floats, w: PackedMatrix | PackedAdapted, bias: PackedVector | None = None) -> Floats:  # type: ignore[override]
        if isinstance(w, PackedAdapted):
            return self.linear(x, w.base, bias) + self.linear(self.linear(x, w.down), w.up)
        x = _rows(x)
        y = np.empty((len(x), w.shape[0]), np.float32)
        _core.linear(self._machine, w.native, None if bias is None else bias.values, x, y)
        return y

    def layer_norm(self, x_ID: Floats, weight: PackedVector, bias: PackedVector, eps: float) -> Floats:  # type: ignore[override]
        x_ID = _rows(x_ID)
        y_ID = np.empty_like(x_ID)
        _core.layer_norm(self._machine, x_ID, weight.values, bias.values, eps, y_ID)
        return y_ID

    def gelu(self, x: Floats) -> Floats:
        x = _rows(x)
        y = np.empty_like(x)
        _core.gelu(self._machine, x.reshape(-1), y.reshape(-1))
        return y

    def attend(
        self,
        q_INH: Floats,
        k_IKH: Floats,
        v_IKH: Floats,
        scale: float,
        lengths: Sequence[int],
        padding: Sequence[bool] | None = None,
    ) -> Floats:
        assert sum(lengths) == len(q_INH), "groups cover all rows"
        y_INH = np.empty_like(q_INH)
        is_padding = np.zeros(len(q_INH), bool) if padding is None else np.asarray(padding, bool)
        first = 0
        for length in lengths:
            rows = np.arange(first, first + length)
            pads, others = rows[is_padding[rows]], rows[~is_padding[rows]]
            # Padding sees all but padding; where there is nothing else, every pair is pushed down alike, to equal weights.
            if len(pads) and not len(others):
                y_INH[pads] = _for_queries(v_IKH[pads].mean(axis=0), q_INH.shape[1])
            elif len(pads):
                y_INH[pads] = self._attend(q_INH[pads], k_IKH[others], v_IKH[others], scale)
            if len(others):
                y_INH[others] = self._attend(q_INH[others], k_IKH[rows], v_IKH[rows], scale)
            first += length
        return y_INH

    def _attend(self, q_INH: Floats, k_JKH: Floats, v_JKH: Floats, scale: float) -> Floats:
        """Every row sees all J keys."""
        rows, kv_heads, head_width = k_JKH.shape
        seen = _core.KeyValues(1, rows, kv_heads, head_width, "float32")
        seen.store(self._machine, 0, _rows(k_JKH), _rows(v_JKH))
        y_INH = np.empty(q_INH.shape, np.float32)
        _core.attend(self._machine, _rows(q_INH), seen, 0, scale, y_INH)
        return y_INH


def _rows(x: Floats) -> Floats:
    """As native code reads it: float32, without holes."""
    return np.ascontiguousarray(x, np.float32)


def _for_queries(x_KH: Floats, num_heads: int) -> Floats:
    """[K, H] -> [N, H]: each kv head for the query heads that read it."""
    return np.repeat(x_KH, num_heads // len(x_KH), axis=0)
