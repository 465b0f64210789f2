"""A tensor of a file as it is, and what a weight is to whoever reads it. `sources.py` makes weights out of such tensors.

Files are opened by programs that then map weights packed before and read none, so numpy is loaded by the first read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from herd.dtypes import F32, DType
from herd.files import MappedFile
from herd.models.weights import Blocks, Dense, stored_bytes
from herd.records import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Bytes: TypeAlias = "NDArray[np.uint8]"


L = TypeVar("L", bound=Dense | Blocks)


class Source(Protocol):
    """A weight that can be read in the format `dtype` with this shape."""

    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The tensors of files that it reads."""
        ...

    def read(self, first: int, last: int) -> Bytes:
        """Rows `first` to `last`, uint8 [last - first, row bytes]."""
        ...

    def rows(self) -> Bytes:
        """All rows, uint8 [rows, row bytes]."""
        ...


def num_rows(shape: tuple[int, ...]) -> int:
    """Rows of a tensor: 1 for one axis."""
    return math.prod(shape[:-1])


class ByRows:
    """A source whose whole is what it reads from its first row to its last."""

    __slots__ = ()

    def rows(self: Source) -> Bytes:
        return self.read(0, num_rows(self.shape))


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file, whose range was checked against the file's size. `shape` is row-major, rows first."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: MappedFile
    offset: int

    @property
    def num_bytes(self) -> int:
        return stored_bytes(self.dtype, self.shape)

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (self,)

    def read(self, first: int, last: int) -> Bytes:
        return self.rows()[first:last]

    def rows(self) -> Bytes:
        """The bytes in place."""
        import numpy as np

        count = self.num_bytes
        flat = np.frombuffer(self.file.view, dtype=np.uint8, count=count, offset=self.offset)
        return flat.reshape(num_rows(self.shape), self.dtype.row_bytes(self.shape[-1]))


@dataclass(frozen=True, slots=True)
class InMemory(Generic[L]):
    """A weight that lies in no file."""

    leaf: L

    @property
    def dtype(self) -> DType:
        return self.leaf.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return ()

    def read(self, first: int, last: int) -> Bytes:
        return self.rows()[first:last]

    def rows(self) -> Bytes:
        import numpy as np

        return np.asarray(self.leaf.data, np.uint8).reshape(num_rows(self.shape), self.dtype.row_bytes(self.shape[-1]))


def of_values(values: NDArray[np.float32]) -> InMemory[Dense]:
    """Numbers that are made where they are needed, float32."""
    import numpy as np

    return InMemory(Dense(F32, values.shape, np.ascontiguousarray(values).reshape(num_rows(values.shape), -1).view(np.uint8)))
