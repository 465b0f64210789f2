"""Weights that memory does not hold: packed piece by piece into the kept file, mapped, and multiplied where the system has them.

Nothing of a model is in memory but what the system keeps of the file, so a step reads from the disk what was not used lately. Experts are
the case that this is for: a token needs one of many. What a dense model lacks in memory it reads anew for every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from herd import _core
from herd.backends.cpu.packed import PANEL_ROWS, PackedVector, Packer
from herd.dtypes import DType
from herd.models.weights import Adapted, Kind, Leaf, TensorSpec, stored
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.checkpoints.checkpoint import Checkpoint

PIECE_BYTES = 32 << 20
WINDOW_BYTES = 64 << 20
"""Of weights that are read before they are used."""
Told = Callable[[int, int], None]
"""Hears of bytes that are packed, of all."""


@dataclass(frozen=True, slots=True)
class Larger:
    """Weights are larger than the memory, of which `memory_bytes` are free."""

    memory_bytes: int
    told: Told

    def read_ahead(self, program: _core.Program) -> None:
        """Half of the memory is for weights that stay; the rest for the cache, buffers, and weights that come and go."""
        program.read_ahead(self.memory_bytes // 2, min(WINDOW_BYTES, self.memory_bytes // 8))


@dataclass(frozen=True, slots=True)
class PackedInPieces:
    """The weights of a checkpoint as a kept file has them: what is said about them, and of each its bytes and pieces. `told` hears of
    every piece."""

    about: Mapping[str, Any]
    parts: Mapping[str, tuple[int, Iterable[memoryview]]]


def in_pieces(specs: Mapping[str, TensorSpec], leaf: Leaf, checkpoint: Checkpoint, packer: Packer, told: Told) -> PackedInPieces:
    """All weights, to be packed one piece at a time as they are written; the file's own pages are given back after each."""
    matrices: dict[str, tuple[int, int, int]] = {}
    experts: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        if spec.kind.is_vector:
            sizes[name] = 4 * spec.count
            continue
        count, rows, columns = spec.shape if len(spec.shape) == 3 else (1, *spec.shape)
        panels = -(-rows // PANEL_ROWS)
        storage, panel_bytes = _panel(packer, checkpoint.dtype(name), columns)
        matrices[name] = (storage, panels * PANEL_ROWS * count if spec.kind is Kind.EXPERTS else rows, columns)
        sizes[name] = count * panels * panel_bytes
        if spec.kind is Kind.EXPERTS:
            experts[name] = (count, rows)
    total, done = sum(sizes.values()), 0

    def pieces(spec: TensorSpec) -> Iterator[memoryview]:
        nonlocal done
        told(done, total)
        for piece in _pieces(spec, leaf, packer):
            yield piece
            done += len(piece)
            told(done, total)
        checkpoint.release_pages()

    parts = {name: (sizes[name], pieces(spec)) for name, spec in specs.items()}
    return PackedInPieces({"matrices": matrices, "experts": experts}, parts)


def _panel(packer: Packer, dtype: DType, columns: int) -> tuple[int, int]:
    """The format that packed rows have, and the bytes of a panel of them."""
    import numpy as np

    one = packer.matrix(stored(dtype, (PANEL_ROWS, columns), np.zeros((PANEL_ROWS, dtype.row_bytes(columns)), np.uint8)))
    return one.native.storage, one.num_bytes


def _pieces(spec: TensorSpec, leaf: Leaf, packer: Packer) -> Iterator[memoryview]:
    import numpy as np

    weight = leaf(spec.name)
    assert not isinstance(weight, Adapted), "adapters are laid over weights that memory holds"
    if spec.kind.is_vector:
        packed = packer.pack(spec, weight)
        assert isinstance(packed, PackedVector)
        yield np.ascontiguousarray(packed.values, np.float32).data.cast("B")
        return
    *_, rows, columns = spec.shape
    data = np.asarray(weight.data).reshape(-1, rows, weight.dtype.row_bytes(columns))
    step = max(1, PIECE_BYTES // weight.dtype.row_bytes(columns) // PANEL_ROWS) * PANEL_ROWS
    for expert in data:
        for first in range(0, rows, step):
            some = expert[first : first + step]
            yield packer.matrix(stored(weight.dtype, (len(some), columns), some)).native.packed
