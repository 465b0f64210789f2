"""Weights as streams: converted to another number format, and read in pieces that a small memory holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints.sources import ByRows, Bytes, Source, StoredTensor, num_rows
from herd.dtypes import DType
from herd.errors import FileProblem
from herd.models.weights import stored_bytes
from herd.quant import dequantize, quantize

PIECE_BYTES = 32 << 20
# Values that are converted at once; each takes up to 20 bytes on the way.
CONVERTED_VALUES = 1 << 21


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the new file: what it is called there, and what it holds."""

    name: str
    source: Source

    @property
    def num_bytes(self) -> int:
        return stored_bytes(self.source.dtype, self.source.shape)


@dataclass(frozen=True, slots=True)
class Converted(ByRows):
    """Another number format. `exactly`: refused where a value would change (`because` says why it must not)."""

    tensor: Source
    dtype: DType
    because: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.tensor.tensors

    def read(self, first: int, last: int) -> Bytes:
        columns = self.shape[-1]
        data = self.tensor.read(first, last)
        out = np.empty((last - first, self.dtype.row_bytes(columns)), np.uint8)
        step = max(1, CONVERTED_VALUES // columns)
        for at in range(0, last - first, step):
            piece = data[at : at + step]
            values = dequantize(self.tensor.dtype, piece, (len(piece), columns))
            try:
                out[at : at + step] = quantize(self.dtype, values)
            except FileProblem as problem:
                raise FileProblem(f"{self.tensors[0].name}: {problem}") from problem
            if self.because:
                self._check(values, out[at : at + step])
        return out

    def _check(self, values: NDArray[np.float32], written: Bytes) -> None:
        again = dequantize(self.dtype, written, values.shape)
        if not np.array_equal(values.view(np.uint32), again.view(np.uint32)):
            raise FileProblem(f"{self.tensors[0].name}: holds values that {self.dtype.name} cannot hold, {self.because}")


def in_format(source: Source, dtype: DType) -> Source:
    """The source in this number format."""
    return source if source.dtype is dtype else Converted(source, dtype)


def pieces(source: Source) -> Iterator[Bytes]:
    """All rows in order, some at a time; what was read is given back to the system before the next ones."""
    for tensor in source.tensors:
        tensor.file.check_unchanged()
    rows = num_rows(source.shape)
    step = max(1, PIECE_BYTES // max(1, source.dtype.row_bytes(source.shape[-1])))
    for first in range(0, rows, step):
        yield source.read(first, min(first + step, rows))
        for tensor in source.tensors:
            tensor.file.drop_pages(tensor.offset, tensor.num_bytes)


def digest(source: Source) -> str:
    """SHA-256 of all bytes."""
    found = hashlib.sha256()
    for piece in pieces(source):
        found.update(np.ascontiguousarray(piece).data)
    return found.hexdigest()
