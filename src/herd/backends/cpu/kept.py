"""Packed weights from one start to the next: written once beside no answer, mapped at the next start, multiplied in place.

A kept file belongs to the exact files that the weights came from (`Origin`), to what was done with them (instruction set,
activations, dtype) and to the layout of packed bytes. Anything else is another file, and the old one goes when room is needed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from herd import _core
from herd.backends.base import BackendOptions
from herd.backends.cpu.packed import Packed, PackedExperts, PackedMatrix, PackedVector
from herd.dtypes import BY_GGML_ID
from herd.errors import FileProblem
from herd.files.kept import Kept, keep, keep_pieces, open_kept
from herd.models.weights import TensorSpec
from herd.records import dataclass
from herd.version import __version__

if TYPE_CHECKING:
    from herd.backends.cpu.larger import PackedInPieces

MIN_BYTES = 16 << 20
"""Smaller models pack in a few milliseconds and are not kept."""
_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Which files weights come from: a digest of everything that identifies them, and the path that was opened."""

    digest: str
    path: Path


class KeptWeights:
    """The kept file of one model as one machine packs it."""

    def __init__(self, origin: Origin, machine: _core.Machine, options: BackendOptions) -> None:
        import hashlib

        how = (machine.isa, options.activations, options.dtype, _core.PACKED_LAYOUT, __version__, origin.digest)
        self._name = f"weights-{hashlib.sha256(repr(how).encode()).hexdigest()[:40]}"
        self._origin = origin
        self._machine = machine
        self._options = options
        self._unwritten: Mapping[str, Packed] | None = None
        self._writer: threading.Thread | None = None
        self._is_cancelled = threading.Event()
        self._mapped: Kept | None = None

    def load(self, specs: Mapping[str, TensorSpec]) -> dict[str, Packed] | None:
        """Every weight, without a copy; None if they are not kept."""
        kept = open_kept(self._name)
        if kept is None or set(kept.names) != set(specs):
            return None
        try:
            packed = {name: self._packed(kept, spec) for name, spec in specs.items()}
        except (LookupError, TypeError, ValueError):
            return None  # not as we write it: packed again, and replaced
        self._mapped = kept
        return packed

    def damage(self) -> str | None:
        """What there is to say if the weights came from a kept file whose bytes are not those that were written: it is deleted. None if it
        is whole, or nothing came from one. Reads all of it."""
        kept, self._mapped = self._mapped, None
        if kept is None or not (damaged := kept.damaged()):
            return None
        kept.path.unlink(missing_ok=True)
        return f"{kept.path} was damaged ({len(damaged)} of its {len(kept.names)} weights) and has been deleted"

    def pack(self, specs: Mapping[str, TensorSpec], pieces: PackedInPieces) -> dict[str, Packed]:
        """Every weight, packed into the kept file and mapped there, for weights that memory does not hold. `CapacityError` where the disk
        does not hold them either."""
        keep_pieces(self._name, {"source": str(self._origin.path.absolute()), **pieces.about}, pieces.parts)
        packed = self.load(specs)
        if packed is None:
            raise FileProblem(
                f"{self._name}.kept in HERD_HOME/cache: what was packed there a moment ago cannot be read again. Is something deleting it?"
            )
        return packed

    def keep_later(self, packed: Mapping[str, Packed]) -> None:
        """These weights are to be written when `start` says that nobody waits."""
        if sum(each.num_bytes for each in packed.values()) >= MIN_BYTES:
            self._unwritten = dict(packed)

    def start(self) -> None:
        """Begins to write, in a thread of its own, if there is something to write."""
        if self._unwritten is None:
            return
        packed, self._unwritten = self._unwritten, None
        self._writer = threading.Thread(target=self._write, args=(packed,), name="herd-keep", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Waits a moment for the writer, then tells it to give up. Nothing half written stays."""
        self._unwritten = None
        if self._writer is not None and self._writer is not threading.current_thread():  # a collector may call from any thread
            self._writer.join(_WAIT_S)
            self._is_cancelled.set()
            self._writer.join()
            self._writer = None

    def _write(self, packed: Mapping[str, Packed]) -> None:
        matrices: dict[str, tuple[int, int, int]] = {}
        experts: dict[str, tuple[int, int]] = {}
        parts: dict[str, memoryview] = {}
        for name, each in packed.items():
            if isinstance(each, PackedExperts):
                experts[name] = (each.count, each.rows)
                each = each.whole
            if isinstance(each, PackedMatrix):
                matrices[name] = (each.native.storage, *each.shape)
                parts[name] = each.native.packed
            elif isinstance(each, PackedVector):
                parts[name] = (each.values if isinstance(each.values, memoryview) else each.values.data).cast("B")
            else:
                return  # adapters are laid over weights anew
        about = {"source": str(self._origin.path.absolute()), "matrices": matrices, "experts": experts}
        keep(self._name, about, parts, self._is_cancelled.is_set)

    def _packed(self, kept: Kept, spec: TensorSpec) -> Packed:
        part = kept.part(spec.name)
        matrix, experts = kept.about["matrices"].get(spec.name), kept.about["experts"].get(spec.name)
        if matrix is None:
            _check_count(spec, len(part) // 4)
            return PackedVector(part.cast("f"))
        storage, rows, columns = matrix
        _check_count(spec, columns * (rows if experts is None else math.prod(experts)))
        native = _core.Matrix.over(self._machine, storage, self._options.activations, rows, columns, part)
        whole = PackedMatrix(native, is_int8=BY_GGML_ID[storage].is_block and self._options.activations == "int8")
        return whole if experts is None else PackedExperts(whole, *experts)


def _check_count(spec: TensorSpec, count: int) -> None:
    if count != spec.count:
        raise ValueError(f"{spec.name} has {count} values; the model's has {spec.count}")
