"""Plain matrices are multiplied where their file has them until somebody has time to pack them.

Packing a model of many gigabytes takes longer than the first answer does, so a start with nothing kept packs only what must be
packed. Everything else is a view of the mapped file: native code packs each panel of 16 rows as it multiplies it, which gives the
same bits and takes up to twice as long. A thread packs these matrices for good after the first answer. Another one asks the
system for the files' bytes, in the order of their use, so that the disk is busy from the first moment on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from herd import _core
from herd.backends.cpu.packed import PackedMatrix
from herd.dtypes import DType
from herd.models.weights import Kind, TensorSpec

if TYPE_CHECKING:
    from herd.checkpoints.checkpoint import Checkpoint

MIN_BYTES = 1 << 20
"""Smaller matrices are packed at once."""
_READ_BYTES = 8 << 20
_RELEASE_BYTES = 256 << 20
_WAIT_S = 1.0


class InPlace:
    """The matrices of one checkpoint that are not packed yet. The files must stay as they are."""

    def __init__(self, checkpoint: Checkpoint, machine: _core.Machine, activations: str, plain_dtype: DType | None) -> None:
        self._checkpoint = checkpoint
        self._machine = machine
        self._activations = activations
        self._plain_dtype = plain_dtype
        self._unpacked: deque[_core.Matrix] = deque()
        self._reader: threading.Thread | None = None
        self._packer: threading.Thread | None = None
        self._is_cancelled = threading.Event()

    def read_ahead(self, specs: Iterable[TensorSpec]) -> None:
        """Begins to fetch these weights from their files, in this order."""
        self._reader = threading.Thread(target=self._read, args=(list(specs),), name="herd-read", daemon=True)
        self._reader.start()

    def matrix(self, spec: TensorSpec) -> PackedMatrix | None:
        """The weight in place; None if it has to be packed: small, in blocks, of another format than it shall have, or put together
        of pieces."""
        from herd.checkpoints.sources import Interleaved, StoredTensor

        source = self._checkpoint.source(spec.name)
        stored = source.tensor if isinstance(source, Interleaved) else source
        dtype, shape = source.dtype, source.shape
        if not isinstance(stored, StoredTensor) or len(shape) != 2 or shape != spec.shape or spec.kind is Kind.EXPERTS:
            return None
        if dtype.is_block or self._plain_dtype not in (None, dtype) or stored.num_bytes < MIN_BYTES:
            return None
        stored.file.check_unchanged()
        head_width = shape[0] // source.num_heads if isinstance(source, Interleaved) else 0
        data = stored.rows().reshape(-1)
        native = _core.Matrix.in_place(self._machine, dtype.ggml_id, self._activations, shape[0], shape[1], data, head_width)
        self._unpacked.append(native)
        return PackedMatrix(native, is_int8=False)

    def start(self, then: Callable[[], None]) -> None:
        """Begins to pack what is in place, in a thread of its own, and calls `then` when everything is packed. Again: does nothing."""
        if self._packer is not None:
            return
        if not self._unpacked:
            then()
            return
        self._packer = threading.Thread(target=self._pack, args=(then,), name="herd-pack", daemon=True)
        self._packer.start()

    def close(self) -> None:
        """Gives the threads a moment to finish, then stops them."""
        own = threading.current_thread()  # a collector may call from any thread
        if self._packer is not None and self._packer is not own:
            self._packer.join(_WAIT_S)
        self._is_cancelled.set()
        for thread in (self._reader, self._packer):
            if thread is not None and thread is not own:
                thread.join()
        self._unpacked.clear()

    def _read(self, specs: list[TensorSpec]) -> None:
        for spec in specs:
            for tensor in self._checkpoint.source(spec.name).tensors:
                end = tensor.offset + tensor.num_bytes
                for offset in range(tensor.offset, end, _READ_BYTES):
                    if self._is_cancelled.is_set():
                        return
                    tensor.file.read_ahead(offset, min(_READ_BYTES, end - offset))

    def _pack(self, then: Callable[[], None]) -> None:
        memory, since_release = _core.Chunks(), 0
        try:
            while self._unpacked and not self._is_cancelled.is_set():
                native = self._unpacked.popleft()
                since_release += native.num_bytes
                native.settle(self._machine, memory)
                if since_release >= _RELEASE_BYTES:
                    self._checkpoint.release_pages()
                    since_release = 0
        except MemoryError:
            return  # what could not be packed is multiplied in place for as long as the model is loaded
        if not self._is_cancelled.is_set():
            self._checkpoint.release_pages()
            then()
