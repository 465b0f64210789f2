"""In which number format each weight is written, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from herd import dtypes
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.sources import Source
from herd.convert.streams import Converted, in_format
from herd.dtypes import BF16, F16, F32, DType
from herd.errors import UsageError
from herd.models.weights import Kind, TensorSpec

# What stands in for a format whose blocks do not divide a row: the nearest of 32 elements, and then no blocks at all.
NARROWER = {"q2_k": "iq4_nl", "q3_k": "iq4_nl", "iq4_xs": "iq4_nl", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
CHANGED = "though they were widened from it when the file was written. The file was changed since."


@dataclass(slots=True)
class Shaping:
    """What was asked for. `dtype` for plain numbers, `quant` for blocks, `matrices` for a choice for each matrix in GGUF; at most one
    of them. `notes` collects what the user should know."""

    dtype: DType | None = None
    quant: DType | None = None
    matrices: Callable[[TensorSpec, Source], Source] | None = None
    notes: list[str] = field(default_factory=list)

    def plain(self, checkpoint: Checkpoint, spec: TensorSpec) -> Source:
        """The weight for layouts that know plain numbers only: as stored, or as asked; blocks become float32, which is exact."""
        source = checkpoint.source(spec.name)
        if self.dtype is not None:
            return in_format(source, self.dtype)
        if source.dtype.is_block:
            self._note("Quantised weights were written as float32, which is exact; --dtype bf16 or f16 halves the size and rounds them.")
            return in_format(source, F32)
        narrow = checkpoint.widened.get(spec.name)
        return Converted(source, narrow, CHANGED) if narrow is not None and source.dtype is F32 else source

    def for_gguf(self, checkpoint: Checkpoint, spec: TensorSpec) -> Source:
        """The weight as GGUF wants it: vectors (and routers, as llama.cpp has them) as float32, matrices as stored or as asked."""
        source = checkpoint.source(spec.name)
        if len(spec.shape) == 1 or spec.kind.is_vector or spec.kind is Kind.ROUTER:
            return in_format(source, F32)
        if self.matrices is not None:
            return self.matrices(spec, source)
        if self.quant is not None:
            return in_format(source, self._fitting(spec))
        return source if self.dtype is None else in_format(source, self.dtype)

    def _fitting(self, spec: TensorSpec) -> DType:
        """The block format asked for, or what stands in for it in a row of this length."""
        assert self.quant is not None
        dtype = fitting(self.quant, spec.shape[-1])
        if dtype is not self.quant:
            self._note(f"Rows of {spec.shape[-1]} do not hold whole blocks of {self.quant.name}; they were written as {dtype.name}.")
        return dtype

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def fitting(dtype: DType, columns: int) -> DType:
    """A format, or what stands in for it in rows of this length."""
    while columns % dtype.block:
        dtype = dtypes.BY_NAME[NARROWER[dtype.name]] if dtype.name in NARROWER else F16
    return dtype


def widened_names(checkpoint: Checkpoint, specs: Sequence[TensorSpec], sources: Mapping[str, Source]) -> dict[DType, list[str]]:
    """Which weights of the new file are float32 and were narrower before, by their format before."""
    found: dict[DType, list[str]] = {BF16: [], F16: []}
    for spec in specs:
        before = checkpoint.widened.get(spec.name, checkpoint.dtype(spec.name))
        if sources[spec.name].dtype is F32 and before in found:
            found[before].append(spec.name)
    return found


def format_named(name: str | None, option: str, allowed: tuple[DType, ...], besides: tuple[str, ...] = ()) -> DType | None:
    """The format that a user names. `UsageError` lists the ones there are, and those `besides` that somebody else knows."""
    if name is None:
        return None
    aliases = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    found = dtypes.BY_NAME.get(aliases.get(name.lower(), name.lower()))
    if found not in allowed:
        raise UsageError(f"{option} is {name!r:.60}; it must be one of {', '.join([*(dtype.name for dtype in allowed), *besides])}.")
    return found
