"""Where the bytes of a weight come from: a tensor of a file as it is, or made of such tensors when somebody reads it.

Files name, order, cut and join weights in their own ways. Each difference is a small source over other sources: rows in another
order, pieces put together, a piece of a larger one. `rows` gives the whole weight, in place where the file keeps it as we do;
`read` gives some of its rows, so that a conversion never holds a whole matrix. A row is the last axis; a tensor of one axis is
one row, one of three axes has rows of all its matrices one after the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints.stored import ByRows, Bytes, Source, StoredTensor, num_rows
from herd.dtypes import F32, DType
from herd.errors import FileProblem
from herd.files import MappedFile
from herd.quant import dequantize

__all__ = [
    "ByRows",
    "Bytes",
    "Halved",
    "Interleaved",
    "Joined",
    "Part",
    "Reshaped",
    "SameBytes",
    "Scaled",
    "Source",
    "StoredTensor",
    "Transposed",
    "num_rows",
    "tensor_of",
]

COMPARED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _Over:
    """A source that changes nothing of another one but the order."""

    tensor: Source

    @property
    def dtype(self) -> DType:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.tensor.tensors


@dataclass(frozen=True, slots=True)
class Interleaved(_Over):
    """A q or k weight (or bias) whose file keeps the two halves of each head apart, as Hugging Face does, in our order: rows i
    and i + half of a head become rows 2i and 2i + 1."""

    num_heads: int

    def read(self, first: int, last: int) -> Bytes:
        if len(self.shape) == 1:
            return self.rows()[first:last]
        return _gather(self.tensor, _between_halves(self.shape[0] // self.num_heads, first, last))

    def rows(self) -> Bytes:
        data = self.tensor.rows()
        apart = data.reshape(self.num_heads, 2, self.shape[0] // self.num_heads // 2, -1)
        return np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(data.shape)


@dataclass(frozen=True, slots=True)
class Halved(_Over):
    """The opposite of `Interleaved`: our order in, halves of a head apart out."""

    num_heads: int

    def read(self, first: int, last: int) -> Bytes:
        if len(self.shape) == 1:
            return self.rows()[first:last]
        return _gather(self.tensor, _alternating(self.shape[0] // self.num_heads, first, last))

    def rows(self) -> Bytes:
        data = self.tensor.rows()
        pairs = data.reshape(self.num_heads, self.shape[0] // self.num_heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(data.shape)


@dataclass(frozen=True, slots=True)
class SameBytes(ByRows):
    """One weight that files hold several times: good only if all copies have the same bytes, checked when it is read. `because`
    ends the message."""

    tensor: Source
    twins: tuple[Source, ...]
    because: str

    @property
    def dtype(self) -> DType:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return tuple(itertools.chain(self.tensor.tensors, *(twin.tensors for twin in self.twins)))

    def read(self, first: int, last: int) -> Bytes:
        ours = self.tensor.read(first, last)
        for twin in self.twins:
            other = twin.read(first, last)
            step = max(1, COMPARED_BYTES // max(1, ours.shape[1]))
            if not all(np.array_equal(ours[at : at + step], other[at : at + step]) for at in range(0, len(ours), step)):
                one, two = self.tensor.tensors[0], twin.tensors[0]
                raise FileProblem(f"{_named(one, two)} and {_named(two, one)} differ, {self.because}")
            if (first, last) == (0, num_rows(self.shape)):
                for tensor in twin.tensors:
                    tensor.file.drop_pages(tensor.offset, tensor.num_bytes)
        return ours


@dataclass(frozen=True, slots=True)
class Joined(ByRows):
    """Pieces put together along an axis. They have one format, and one shape but for that axis."""

    parts: tuple[Source, ...]
    axis: int

    @property
    def dtype(self) -> DType:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (*first[: self.axis], sum(part.shape[self.axis] for part in self.parts), *first[self.axis + 1 :])

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return tuple(itertools.chain(*(part.tensors for part in self.parts)))

    def read(self, first: int, last: int) -> Bytes:
        shape = self.shape
        if self.axis == len(shape) - 1:
            return np.concatenate([part.read(first, last) for part in self.parts], axis=1)
        inner = math.prod(shape[self.axis + 1 : -1])
        pieces = [part.read(start, end) for part, start, end in self._runs(first, last, inner)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _runs(self, first: int, last: int, inner: int) -> Iterator[tuple[Source, int, int]]:
        """Which rows of which parts make up rows `first` to `last`; `inner` rows belong to one step along the axis."""
        whole = self.shape[self.axis] * inner
        for outer in range(first // whole, -(-last // whole)):
            at = outer * whole
            for part in self.parts:
                length = part.shape[self.axis] * inner
                start, end = max(first, at), min(last, at + length)
                if start < end:
                    yield part, start - at + outer * length, end - at + outer * length
                at += length


@dataclass(frozen=True, slots=True)
class Part(ByRows):
    """The steps `start` to `stop` along an axis of a larger tensor; along the last axis they must be whole blocks."""

    whole: Source
    axis: int
    start: int
    stop: int

    @property
    def dtype(self) -> DType:
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.whole.shape
        return (*shape[: self.axis], self.stop - self.start, *shape[self.axis + 1 :])

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.whole.tensors

    def read(self, first: int, last: int) -> Bytes:
        shape = self.whole.shape
        if self.axis == len(shape) - 1:
            return self.whole.read(first, last)[:, self.dtype.row_bytes(self.start) : self.dtype.row_bytes(self.stop)]
        inner = math.prod(shape[self.axis + 1 : -1])
        theirs, ours, skipped = shape[self.axis] * inner, (self.stop - self.start) * inner, self.start * inner
        pieces = []
        for outer in range(first // ours, -(-last // ours)):
            start, end = max(first - outer * ours, 0), min(last - outer * ours, ours)
            pieces.append(self.whole.read(outer * theirs + skipped + start, outer * theirs + skipped + end))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@dataclass(frozen=True, slots=True)
class Transposed(ByRows):
    """The last two axes exchanged. Plain formats only: blocks run along rows."""

    tensor: Source

    @property
    def dtype(self) -> DType:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        *outer, height, width = self.tensor.shape
        return (*outer, width, height)

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.tensor.tensors

    def read(self, first: int, last: int) -> Bytes:
        *_, width, height = self.shape
        pieces = []
        for outer in range(first // width, -(-last // width)):
            start, end = max(first - outer * width, 0), min(last - outer * width, width)
            matrix = self.tensor.read(outer * height, (outer + 1) * height).reshape(height, width, self.dtype.block_bytes)
            turned = np.ascontiguousarray(matrix[:, start:end].swapaxes(0, 1))
            pieces.append(turned.reshape(end - start, height * self.dtype.block_bytes))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@dataclass(frozen=True, slots=True)
class Reshaped(ByRows):
    """The same values in the same order under another shape."""

    tensor: Source
    shape: tuple[int, ...]

    @property
    def dtype(self) -> DType:
        return self.tensor.dtype

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.tensor.tensors

    def read(self, first: int, last: int) -> Bytes:
        ours, theirs = self.dtype.row_bytes(self.shape[-1]), self.dtype.row_bytes(self.tensor.shape[-1])
        begin = first * ours // theirs
        data = self.tensor.read(begin, -(-last * ours // theirs)).reshape(-1)
        at = first * ours - begin * theirs
        return data[at : at + (last - first) * ours].reshape(last - first, ours)


@dataclass(frozen=True, slots=True)
class Scaled(ByRows):
    """Small numbers (int8, e4m3) times float scales, as float32: value = q * scale. `scales` has one number for each row, or for
    each stretch of a row: its shape is the tensor's but for the last axis, which counts stretches."""

    values: Source
    scales: Source

    @property
    def dtype(self) -> DType:
        return F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (*self.values.tensors, *self.scales.tensors)

    def read(self, first: int, last: int) -> Bytes:
        columns, stretches = self.shape[-1], self.scales.shape[-1]
        q = dequantize(self.values.dtype, self.values.read(first, last), (last - first, stretches, columns // stretches))
        scales = dequantize(self.scales.dtype, self.scales.read(first, last), (last - first, stretches))
        q *= scales[:, :, None]
        return q.reshape(last - first, columns).view(np.uint8)


@dataclass(frozen=True, slots=True)
class Built:
    """A tensor that stands for another source under a name, as if a file held it."""

    name: str
    source: Source

    @property
    def dtype(self) -> DType:
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.source.tensors

    @property
    def file(self) -> MappedFile:
        """Where (the first part of) it is."""
        return self.tensors[0].file

    def read(self, first: int, last: int) -> Bytes:
        return self.source.read(first, last)

    def rows(self) -> Bytes:
        return self.source.rows()


def tensor_of(source: Source) -> StoredTensor:
    """The (first) stored tensor that a source reads."""
    return source.tensors[0]


def _between_halves(width: int, first: int, last: int) -> NDArray[np.intp]:
    """The rows of a file that keeps halves of a head of `width` apart, for our rows `first` to `last`."""
    row = np.arange(first, last)
    inside = row % width
    return row - inside + inside % 2 * (width // 2) + inside // 2


def _alternating(width: int, first: int, last: int) -> NDArray[np.intp]:
    """Our rows, for the rows `first` to `last` of a file that keeps halves apart."""
    row = np.arange(first, last)
    inside = row % width
    return row - inside + inside % (width // 2) * 2 + inside // (width // 2)


def _gather(source: Source, rows: NDArray[np.intp]) -> Bytes:
    """Rows of a source in any order, read as one run that covers them."""
    start, end = int(rows.min(initial=0)) if len(rows) == 0 else int(rows.min()), int(rows.max(initial=-1)) + 1
    return source.read(start, end)[rows - start]


def _named(tensor: StoredTensor, other: StoredTensor) -> str:
    """A tensor for a message, with its file where that tells the two apart."""
    return tensor.name if tensor.file is other.file else f"{tensor.name} in {tensor.file.name}"
