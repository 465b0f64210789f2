"""Weights as native code multiplies them: each leaf of a file repacked once, and nothing of the file kept.

Matrices become panels of 16 rows (csrc/kernels/matrix.h). Norms and biases become float32 arrays. An adapter's two
matrices are float32, with its scale inside `up`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from herd import _core
from herd.dtypes import BF16, F16, F32, DType
from herd.errors import UsageError
from herd.models.weights import Adapted, Blocks, Dense, Kind, Matrix, TensorSpec, Update
from herd.records import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PANEL_ROWS = 16
PLAIN_DTYPES: dict[str | None, DType | None] = {None: None, "float32": F32, "float16": F16, "bfloat16": BF16}


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A matrix [out, in] that exists once, however often a model uses it."""

    native: _core.Matrix
    is_int8: bool
    """Whether it is multiplied with int8 activations."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.native.rows, self.native.columns

    @property
    def num_bytes(self) -> int:
        return self.native.num_bytes


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapted:
    """base + up down: `down` [rank, in], `up` [out, rank] times the adapter's scale. `down_transposed` [in, rank] for a table
    that tokens are looked up in."""

    base: PackedMatrix
    down: PackedMatrix
    up: PackedMatrix
    down_transposed: PackedMatrix | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    @property
    def is_int8(self) -> bool:
        return self.base.is_int8

    @property
    def num_bytes(self) -> int:
        transposed = self.down_transposed.num_bytes if self.down_transposed else 0
        return self.base.num_bytes + self.down.num_bytes + self.up.num_bytes + transposed


@dataclass(frozen=True, slots=True, eq=False)
class PackedVector:
    """A norm's weight or a bias, float32 (a view of format "f" where it is mapped)."""

    values: NDArray[np.float32] | memoryview[float]
    is_int8: ClassVar[bool] = False

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class PackedExperts:
    """The matrices of `count` experts [E, out, in], one after another in one matrix; each begins at a multiple of 16 rows."""

    whole: PackedMatrix
    count: int
    rows: int

    @property
    def is_int8(self) -> bool:
        return self.whole.is_int8

    @property
    def num_bytes(self) -> int:
        return self.whole.num_bytes

    def each(self) -> list[_core.Matrix]:
        """The matrix of every expert, in the memory of the whole."""
        step = self.whole.shape[0] // self.count
        return [self.whole.native.part(expert * step, self.rows) for expert in range(self.count)]


PackedUpdate = tuple[PackedMatrix, PackedMatrix]
Updates = tuple[PackedUpdate | None, ...]
"""(down, up) of one matrix for each adapter, or None for an adapter that leaves it alone."""

Packed = PackedMatrix | PackedAdapted | PackedVector | PackedExperts


@dataclass(frozen=True, slots=True)
class Packer:
    """Packs leaves for one machine. `activations` is what block formats are multiplied with; `plain_dtype` the format that
    plain matrices are brought to first (None: as stored). `memory` is shared by what comes and goes together; without it every
    matrix has its own."""

    machine: _core.Machine
    activations: str
    plain_dtype: DType | None
    memory: _core.Chunks | None = None

    def pack(self, spec: TensorSpec, leaf: Matrix) -> Packed:
        """The native form of the weight that `spec` declares."""
        if tuple(leaf.shape) != spec.shape:
            raise UsageError(f"{spec.name} has shape {list(leaf.shape)}; the model's has {list(spec.shape)}.")
        if spec.kind.is_vector:
            return PackedVector(_values(leaf))
        if spec.kind is Kind.EXPERTS:
            if isinstance(leaf, Adapted):
                raise UsageError(f"{spec.name} has an adapter; adapters over the stacked matrices of experts are not supported.")
            return self._experts(leaf)
        if isinstance(leaf, Adapted):
            import numpy as np

            down, up = self.update(leaf)
            is_table = spec.kind is Kind.EMBEDDING
            transposed = self._floats(np.ascontiguousarray(_values(leaf.down).T)) if is_table else None
            return PackedAdapted(base=self.matrix(leaf.base), down=down, up=up, down_transposed=transposed)
        return self.matrix(leaf)

    def update(self, update: Adapted | Update) -> PackedUpdate:
        """The two matrices of a low-rank update, with its scale inside `up`."""
        import numpy as np

        return self._floats(_values(update.down)), self._floats(_values(update.up) * np.float32(update.scale))

    def matrix(self, leaf: Dense | Blocks) -> PackedMatrix:
        rows, columns = leaf.shape
        dtype, data = leaf.dtype, _bytes(leaf.data)
        if self.plain_dtype is not None and not dtype.is_block and dtype is not self.plain_dtype:
            from herd.quant import dequantize, quantize

            data = _bytes(quantize(self.plain_dtype, dequantize(dtype, leaf.data, leaf.shape)))
            dtype = self.plain_dtype
        native = _core.Matrix(self.machine, dtype.ggml_id, self.activations, rows, columns, data, self.memory)
        return PackedMatrix(native, is_int8=dtype.is_block and self.activations == "int8")

    def _experts(self, leaf: Dense | Blocks) -> PackedExperts:
        """A stack as one matrix. Rows that do not fill a panel of 16 are followed by rows of zeros."""
        import numpy as np

        count, rows, columns = leaf.shape
        stored = _bytes(leaf.data).reshape(count, rows, -1)
        missing = -rows % PANEL_ROWS
        if missing:
            stored = np.concatenate([stored, np.zeros((count, missing, stored.shape[-1]), np.uint8)], axis=1)
        return PackedExperts(self.matrix(type(leaf)(leaf.dtype, (count * (rows + missing), columns), stored)), count, rows)

    def _floats(self, values: NDArray[np.float32]) -> PackedMatrix:
        rows, columns = values.shape
        native = _core.Matrix(self.machine, F32.ggml_id, self.activations, rows, columns, _bytes(values), self.memory)
        return PackedMatrix(native, is_int8=False)


def from_one(weight: PackedVector) -> PackedVector:
    """1 + weight."""
    import numpy as np

    return PackedVector(np.float32(1) + np.asarray(weight.values, np.float32))


def _bytes(data: Any) -> NDArray[np.uint8]:
    """Any contiguous buffer as uint8 [bytes]; no copy unless it has holes."""
    import numpy as np

    return np.ascontiguousarray(np.asarray(data)).reshape(-1).view(np.uint8)


def _values(leaf: Matrix) -> NDArray[np.float32]:
    """A plain leaf in float32, in memory of its own."""
    import numpy as np

    from herd.quant import dequantize

    assert isinstance(leaf, Dense), "norms, biases and adapters are plain"
    return np.array(dequantize(leaf.dtype, leaf.data, leaf.shape), np.float32, order="C")
