"""The format of Meta's own int4 releases (Llama 3.2): matrices in groups of 32 with a float32 scale, embedding and head in 8 bits with
one scale a row, in Meta's layout.

    X.weight int8, from -8 to 7      X.scales float32 [rows, columns / 32]      made for activations rounded to 8 bits a token

In the file every number takes a byte, whatever its bits; programs pack them while they load. Sources: Meta's
`llama3/quantization/loader.py`, params.json of Llama-3.2-1B-Instruct-QLORA_INT4_EO8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints import names
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.meta_quantised import SCHEME
from herd.checkpoints.sources import ByRows, Bytes, Source, StoredTensor
from herd.convert.shaping import Shaping
from herd.convert.streams import Output
from herd.dtypes import F32, I8, DType
from herd.errors import FileProblem, UsageError
from herd.models.llama import LlamaConfig
from herd.models.weights import Kind, TensorSpec
from herd.quant import dequantize, fit_groups

NAME = "int4"
GROUP = 32
# Values that one thread has as float32 at a time.
THREAD_VALUES = 1 << 20


@dataclass(slots=True)
class Grouped:
    """A weight as integers and their scales, found together, some rows at a time. What was found of the scales while the integers
    were written is kept until the scales are read."""

    tensor: Source
    bits: int
    group: int
    importance: NDArray[np.float32] | None
    pool: ThreadPoolExecutor
    kept: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def fit(self, first: int, last: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Integers [rows, columns] and scales [rows, groups] of some rows."""
        columns = self.tensor.shape[-1]
        step = max(1, THREAD_VALUES // columns)

        def work(at: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
            data = self.tensor.read(at, min(at + step, last))
            values = dequantize(self.tensor.dtype, data, (len(data), columns))
            return fit_groups(values, self.bits, self.group, self.importance)

        try:
            found = list(self.pool.map(work, range(first, last, step)))
        except FileProblem as problem:
            raise FileProblem(f"{self.tensor.tensors[0].name}: {problem}") from problem
        return np.concatenate([q for q, _ in found]), np.concatenate([d for _, d in found])


@dataclass(frozen=True, slots=True)
class Part(ByRows):
    """One half of a `Grouped` weight as a stream: its integers, or its scales."""

    of: Grouped
    is_scales: bool

    @property
    def dtype(self) -> DType:
        return F32 if self.is_scales else I8

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.of.tensor.shape
        return (rows, columns // self.of.group) if self.is_scales else (rows, columns)

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.of.tensor.tensors

    def read(self, first: int, last: int) -> Bytes:
        if not self.is_scales:
            q, scales = self.of.fit(first, last)
            self.of.kept.update(zip(range(first, last), scales, strict=True))
            return q.view(np.uint8)
        if all(row in self.of.kept for row in range(first, last)):
            return np.stack([self.of.kept.pop(row) for row in range(first, last)]).view(np.uint8)
        return self.of.fit(first, last)[1].view(np.uint8)


def check_meta_int4(checkpoint: Checkpoint) -> None:
    """`UsageError` for a model that has no such format: another architecture, or rows that groups of 32 do not divide."""
    if not isinstance(checkpoint.config, LlamaConfig):
        raise UsageError(f"{NAME} is the format of Meta's Llama 3.2 releases; models of {checkpoint.architecture} have none of it.")
    for spec in checkpoint.specs:
        if bits_of(spec) and spec.shape[-1] % GROUP:
            raise UsageError(f"{NAME} has groups of {GROUP}; rows of {spec.name} have {spec.shape[-1]}, which is no multiple of that.")


def bits_of(spec: TensorSpec) -> int:
    """4 for matrices, 8 for embedding and head, 0 for what stays as it is."""
    return {Kind.MATRIX: 4, Kind.EMBEDDING: 8, Kind.HEAD: 8}.get(spec.kind, 0)


def outputs_of(
    checkpoint: Checkpoint, shaping: Shaping, importance: Callable[[str], NDArray[np.float32] | None], pool: ThreadPoolExecutor
) -> list[Output]:
    """All tensors by Meta's names; a tied head is the embedding's storages again."""
    outputs: list[Output] = []
    for spec in checkpoint.specs:
        name, bits = names.in_file(names.META, spec.name), bits_of(spec)
        if not bits:
            outputs.append(Output(name, shaping.plain(checkpoint, spec)))
            continue
        source = checkpoint.source(spec.name)
        if source.dtype.is_block:
            shaping.notes.append("The source is quantised already, and its errors stay; better results come from weights of 16 or 32 bits.")
        whole = Grouped(source, bits, GROUP if bits == 4 else spec.shape[-1], importance(spec.name), pool)
        outputs += _pair(name, Part(whole, False), Part(whole, True))
    if checkpoint.config.tied_embeddings:
        outputs += _pair(names.META["head"], outputs[0].source, outputs[1].source)
    return outputs


def _pair(name: str, weight: Source, scales: Source) -> list[Output]:
    return [Output(name, weight), Output(name.removesuffix("weight") + "scales", scales)]


def params_with(params: dict[str, Any]) -> dict[str, Any]:
    """params.json, saying how weights are kept."""
    return {**params, "quantization_args": {"scheme": SCHEME, "group_size": GROUP, "spinquant": False}}


def bits_per_weight(checkpoint: Checkpoint) -> float:
    """Of what programs keep after loading: packed integers, float32 scales, and all else as stored."""
    total, count = 0.0, 0
    for spec in checkpoint.specs:
        bits = bits_of(spec)
        rows = math.prod(spec.shape[:-1])
        count += spec.count
        total += bits * spec.count + 32 * rows * (spec.shape[-1] // GROUP if bits == 4 else 1) if bits else 32 * spec.count
    return total / count
