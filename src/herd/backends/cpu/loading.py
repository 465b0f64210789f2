"""Where the weights of a backend come from: the kept file of an earlier start, else the model's own files.

kept file, mapped                           if there is one that fits
packed into a kept file, then mapped        if memory does not hold them (`larger`)
packed into memory, or multiplied in place  otherwise; kept after the first answer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from herd import _core
from herd.backends.base import BackendOptions
from herd.backends.cpu.kept import KeptWeights, Origin
from herd.backends.cpu.packed import PLAIN_DTYPES, Packed, Packer
from herd.errors import FileProblem
from herd.models.weights import Kind, Leaf, TensorSpec
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.backends.cpu.in_place import InPlace
    from herd.backends.cpu.larger import Larger
    from herd.checkpoints.checkpoint import Checkpoint

# After so many bytes were packed the pages of the file that they came from are given back.
_RELEASE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A model's own weights, and what is known of them; as the arguments of `CpuBackend`."""

    leaf: Leaf
    release: Callable[[], None]
    origin: Origin | None
    checkpoint: Checkpoint | None
    larger: Larger | None


class Loading:
    """The weights of one model for one machine."""

    def __init__(self, packer: Packer, options: BackendOptions, specs: Mapping[str, TensorSpec], source: Source) -> None:
        self._packer = packer
        self._options = options
        self._specs = specs
        self._source = source
        self._kept = None if source.origin is None else KeptWeights(source.origin, packer.machine, options)
        self._in_place: InPlace | None = None
        self._has_answered = False
        self._damage: str | None = None

    def load(self) -> dict[str, Packed]:
        """Every weight."""
        packed = None if self._kept is None else self._kept.load(self._specs)
        checkpoint, larger = self._source.checkpoint, self._source.larger
        if packed is None and larger is not None:
            from herd.backends.cpu.larger import in_pieces

            assert self._kept is not None and checkpoint is not None, "weights that are packed on the disk have an origin"
            pieces = in_pieces(self._specs, self._source.leaf, checkpoint, self._packer, larger.told)
            return self._kept.pack(self._specs, pieces)
        if packed is None:
            packed = self._pack_in_memory()
            if self._kept is not None:
                self._kept.keep_later(packed)
        return packed

    def answered(self) -> None:
        """Nobody waits for the first answer any more: what it did not need can be done now."""
        self._has_answered = True
        keep = _nothing if self._kept is None else self._kept.start
        if self._in_place is None:
            keep()
        else:
            self._in_place.start(keep)

    def again(self) -> dict[str, Packed] | None:
        """For logits that are no numbers: every weight packed anew, if they came from a kept file that is damaged. None if that is not
        the reason. `FileProblem` where an answer was given before: the cache holds what was computed with those weights."""
        damage = None if self._kept is None else self._kept.damage()
        if damage is None:
            return None
        if not self._has_answered:
            return self.load()
        self._damage = f"{damage}: what was answered until now may be wrong. Load the model again; it is packed anew from its own files."
        raise FileProblem(self._damage)

    def refuse_damaged(self) -> None:
        """`FileProblem` if `again` has raised one."""
        if self._damage is not None:
            raise FileProblem(self._damage)

    def close(self) -> None:
        """Ends the threads that pack and write, if there are some."""
        if self._in_place is not None:
            self._in_place.close()
        if self._kept is not None:
            self._kept.close()

    def _pack_in_memory(self) -> dict[str, Packed]:
        if self._source.checkpoint is not None:
            from herd.backends.cpu.in_place import InPlace

            plain_dtype = PLAIN_DTYPES[self._options.dtype]
            self._in_place = InPlace(self._source.checkpoint, self._packer.machine, self._options.activations, plain_dtype)
        try:
            return self._pack()
        except BaseException:
            if self._in_place is not None:
                self._in_place.close()
            raise

    def _pack(self) -> dict[str, Packed]:
        packer = replace(self._packer, memory=_core.Chunks())
        packed: dict[str, Packed] = {}
        since_release = 0
        # Tables last: a step reads a few rows of them, and all of one only as the head.
        specs = sorted(self._specs.values(), key=lambda spec: spec.kind is Kind.EMBEDDING)
        if self._in_place is not None:
            self._in_place.read_ahead(specs)
        for spec in specs:
            matrix = None if self._in_place is None else self._in_place.matrix(spec)
            if matrix is not None:
                packed[spec.name] = matrix
                continue
            leaf = self._source.leaf(spec.name)
            packed[spec.name] = packer.pack(spec, leaf)
            since_release += leaf.num_bytes
            if since_release >= _RELEASE_BYTES:
                self._source.release()
                since_release = 0
        self._source.release()
        return packed


def _nothing() -> None:
    pass
