"""Which format each matrix gets, so that a file of a given size harms the model least.

The harm of a format in a matrix: the weighted error of some of its rows, as a share of its output's energy, times what an error in
that output does to the model's probabilities (both measured, see `calibration`). Harms are added up, as they may be while small.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd import dtypes
from herd.checkpoints.sources import Source, num_rows
from herd.convert.calibration import Calibration, output_of
from herd.convert.fitted import Fitted
from herd.dtypes import DType
from herd.errors import UsageError
from herd.models.weights import TensorSpec, stored_bytes
from herd.quant import dequantize

CANDIDATES = tuple(dtypes.BY_NAME[name] for name in ("q2_k", "q3_k", "iq4_xs", "iq4_nl", "q4_k", "q5_0", "q5_k", "q6_k", "q8_0"))
# Weights of a matrix that are tried in every format.
SAMPLED_VALUES = 1 << 16


@dataclass(frozen=True, slots=True)
class Choice:
    """A format for one matrix."""

    dtype: DType
    num_bytes: int
    harm: float


def choices_of(spec: TensorSpec, source: Source, calibration: Calibration, sample: Fitted) -> list[Choice]:
    """All formats that this matrix's rows hold, tried on some of its rows. `sample` says with which importance and threads."""
    columns, rows = spec.shape[-1], num_rows(spec.shape)
    some = np.unique(np.linspace(0, rows - 1, max(1, min(rows, SAMPLED_VALUES // columns))).astype(int))
    values = np.concatenate([dequantize(source.dtype, source.read(row, row + 1), (1, columns)) for row in some])
    weights = np.ones(columns, np.float32) if sample.importance is None else sample.importance
    name, is_own = output_of(spec, calibration.outputs)
    energy = float((np.square(values) @ weights).sum(dtype=np.float64))
    if is_own and sample.importance is not None and spec.name != "embed":
        energy = calibration.outputs[name] * len(some) / rows
    harm = calibration.harm.get(name, 1.0)
    if spec.name == "embed" and sample.importance is not None:
        # The embedding is the head too.
        harm += calibration.harm.get("logits", 0.0)
    found = []
    for dtype in CANDIDATES:
        if columns % dtype.block == 0:
            error = _error(values, weights, sample, dtype)
            found.append(Choice(dtype, stored_bytes(dtype, spec.shape), harm * error / max(energy, 1e-30)))
    return found or [Choice(dtypes.F16, stored_bytes(dtypes.F16, spec.shape), 0.0)]


def _error(values: NDArray[np.float32], weights: NDArray[np.float32], sample: Fitted, dtype: DType) -> float:
    from herd.quant import quantize_fitted

    parts = np.array_split(values, min(len(values), 4))
    stored = sample.pool.map(lambda part: quantize_fitted(dtype, part, sample.importance), parts)
    return sum(
        float((np.square(dequantize(dtype, data, part.shape) - part) @ weights).sum(dtype=np.float64))
        for part, data in zip(parts, stored, strict=True)
    )


def spend(choices: Mapping[str, Sequence[Choice]], budget_bytes: int) -> dict[str, DType]:
    """A format for each matrix, the least harm for at most so many bytes together.

    Every matrix begins with its smallest format. Then, again and again, the step to a larger one that lowers the harm most for
    each byte is taken, if there is room. `UsageError` if not even the smallest formats fit.
    """
    ladders = {name: _ladder(each) for name, each in choices.items()}
    used = sum(ladder[0].num_bytes for ladder in ladders.values())
    if used > budget_bytes:
        raise UsageError(f"the matrices take {used:,} bytes at least, and {budget_bytes:,} are left for them")
    at = dict.fromkeys(ladders, 0)
    steps = [(-_gain(ladder[0], ladder[1]), name) for name, ladder in ladders.items() if len(ladder) > 1]
    heapq.heapify(steps)
    while steps:
        _, name = heapq.heappop(steps)
        ladder, here = ladders[name], at[name]
        more = ladder[here + 1].num_bytes - ladder[here].num_bytes
        if used + more > budget_bytes:
            continue
        used, at[name] = used + more, here + 1
        if here + 2 < len(ladder):
            heapq.heappush(steps, (-_gain(ladder[here + 1], ladder[here + 2]), name))
    return {name: ladders[name][here].dtype for name, here in at.items()}


def _gain(small: Choice, large: Choice) -> float:
    return (small.harm - large.harm) / (large.num_bytes - small.num_bytes)


def _ladder(choices: Sequence[Choice]) -> list[Choice]:
    """The choices that are worth their bytes: each step up lowers the harm, and by less for each byte than the step before."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.num_bytes, each.harm)):
        if found and choice.harm >= found[-1].harm:
            continue
        while len(found) > 1 and _gain(found[-2], found[-1]) <= _gain(found[-1], choice):
            found.pop()
        if found and found[-1].num_bytes == choice.num_bytes:
            continue
        found.append(choice)
    return found
