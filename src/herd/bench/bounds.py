"""What a task must take at least on this machine: the time to read what a step reads, or to multiply what it multiplies.

    bytes        weights (of experts those that the tokens meet, on average; of a table of embeddings the rows) and the cache
    operations   products of matrices, 2 for each weight that a token meets; of a prompt the last token alone meets the head

Attention's own products and everything between matrices are left out, so a bound is never reached and never too low.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from herd.bench.tasks import Question
from herd.dtypes import BF16, DType
from herd.models.architecture import Config, architecture_of
from herd.models.sizes import num_chosen, part_of
from herd.models.weights import Kind, TensorSpec
from herd.planner.formats import Chosen, Format
from herd.planner.speed import Work

BANDWIDTH = "read bandwidth"


@dataclass(frozen=True, slots=True)
class Bound:
    """The least seconds of a task, what it waits for, and the bytes and operations that follow from the model."""

    seconds: float
    waits_for: str
    num_bytes: float
    operations: float

    @property
    def what(self) -> str:
        return (
            f"{self.num_bytes / 1e6:,.0f} MB read" if self.waits_for == BANDWIDTH else f"{self.operations / 1e9:,.1f} GOP {self.waits_for}"
        )


class Bounds:
    """The bounds of one model, stored so, with such activations and such a cache. `has_bf16`: on an instruction set with dot products
    of bf16."""

    def __init__(self, config: Config, chosen: Chosen, activations: str, cache: DType, *, has_bf16: bool = False) -> None:
        self._work = Work(config, Format("as stored", chosen, (), ""), cache)
        self._config = config
        self._operations: dict[str, dict[bool, float]] = {}
        is_tied = not any(spec.kind is Kind.HEAD for spec in architecture_of(config).tensors(config))
        for spec in architecture_of(config).tensors(config):
            if part_of(spec) == "vision" or spec.kind.is_vector or (spec.kind is Kind.EMBEDDING and not is_tied):
                continue
            is_head = spec.kind in (Kind.HEAD, Kind.EMBEDDING)
            kind = multiplied_in(chosen(spec), activations, has_bf16=has_bf16)
            counts = self._operations.setdefault(kind, {True: 0.0, False: 0.0})
            counts[is_head] += 2.0 * self._met(spec)

    def _met(self, spec: TensorSpec) -> int:
        return spec.count * num_chosen(self._config) // spec.shape[0] if spec.kind is Kind.EXPERTS else spec.count

    @property
    def kinds(self) -> tuple[str, ...]:
        """The number formats that products are in, the most operations first."""
        return tuple(sorted(self._operations, key=lambda kind: -sum(self._operations[kind].values())))

    def weight_bytes(self) -> float:
        """What a step of one token reads of the weights: the active bytes."""
        return self._work.read_bytes(1)

    def of(self, question: Question, limits: Mapping[str, float]) -> Bound | None:
        """None where nothing physical bounds it, or a limit of this machine was not measured."""
        if question.unit not in ("tokens/s", "s") or question.group in ("start", "parts") or BANDWIDTH not in limits:
            return None
        if any(kind not in limits for kind in self.kinds):
            return None
        tokens = question.tokens * question.sequences
        outputs = 1 if question.group in ("prompt", "long-prompt") else tokens
        read = self._work.read_bytes(tokens) + question.sequences * self._work.cache_read_bytes(question.context)
        by_kind = {kind: counts[False] * tokens + counts[True] * outputs for kind, counts in self._operations.items()}
        reading = read / limits[BANDWIDTH]
        computing = math.fsum(count / limits[kind] for kind, count in by_kind.items())
        waits_for = BANDWIDTH if reading >= computing else " and ".join(f"in {kind}" for kind in self.kinds)
        return Bound(max(reading, computing), waits_for, read, math.fsum(by_kind.values()))


def multiplied_in(dtype: DType, activations: str, *, has_bf16: bool) -> str:
    """The rule of the cpu backend: block formats with int8 activations unless float32 is asked for, bf16 with its dot product where the
    instruction set has one, everything else in float32."""
    if dtype.is_block and activations == "int8":
        return "int8"
    return "bf16" if dtype is BF16 and has_bf16 else "float32"
