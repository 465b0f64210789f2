"""What each matrix will multiply, as far as the weights before it say: importance of columns where no text is read.

    after a norm            a component is as large as the norm's weight, if none is larger than others before it
    after attention         a column reads what a row of v makes: as large as the row, seen through v's norm
    inside a feed-forward   silu(gate) * up of two such rows, as if they were independent and normally distributed

Only proportions within a matrix count. What the weights do not tell is left out: the hidden state of experts, who are chosen by token,
what comes from pictures, and what follows from weights that are not numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.sources import num_rows
from herd.convert.calibration import input_of
from herd.family.progress import Progress
from herd.models.weights import Kind, TensorSpec
from herd.quant import dequantize

Floats = NDArray[np.float32]
Squares = NDArray[np.float64]

SEEING = ("vision.", "crossing.")
# Values that one thread has as float64 at a time.
PIECE_VALUES = 1 << 20
# Points and shares of a standard normal distribution, by Gauss and Hermite.
_POINTS, _SHARES = np.polynomial.hermite_e.hermegauss(24)


def expected_inputs(checkpoint: Checkpoint, pool: ThreadPoolExecutor, progress: Progress) -> dict[str, Floats]:
    """The name of a matrix -> about in which proportion the mean squares of its columns' inputs are [columns], the largest 1."""
    kinds = (Kind.MATRIX, Kind.EXPERTS, Kind.HEAD, Kind.NORM)
    specs = {spec.name: spec for spec in checkpoint.specs if spec.kind in kinds and not spec.name.startswith(SEEING)}
    with np.errstate(all="ignore"):  # what is not a number is left out below
        norms = {name: np.square(_values(checkpoint, name, 0, 1)[0]) for name, spec in specs.items() if spec.kind is Kind.NORM}
        norms["final"] = norms.get("norm", np.ones(1))
        found: dict[str, Squares] = {}
        for name, spec in specs.items():
            before = norms.get(input_of(spec) or "")
            if before is not None and len(before) == spec.shape[-1]:
                found[name] = before
        matrices = [spec for spec in specs.values() if spec.kind is Kind.MATRIX]
        for done, spec in enumerate(matrices, 1):
            if (inputs := _inside(checkpoint, spec, specs, found, pool)) is not None:
                found[spec.name] = inputs
            progress("foreseeing inputs, matrices", done, len(matrices))
        return {name: (each / each.max()).astype(np.float32) for name, each in found.items() if 0 < each.max() < np.inf}


def _inside(
    checkpoint: Checkpoint, spec: TensorSpec, specs: Mapping[str, TensorSpec], known: Mapping[str, Squares], pool: ThreadPoolExecutor
) -> Squares | None:
    """Of a matrix that reads what other matrices of its block make, if these are known."""
    at, _, name = spec.name.rpartition(".")
    needed = [f"{at}.{each}" for each in {"out": ("v",), "down": ("gate", "up")}.get(name, ())]
    if not needed or any(each not in known or len(specs[each].shape) != 2 for each in needed):
        return None
    made = [_output_squares(checkpoint, specs[each], known[each], pool) for each in needed]
    if name == "down":
        inputs = _squared_silu(made[0]) * made[1]
    else:
        heads = made[0].reshape(-1, checkpoint.config.head_width)
        inputs = np.repeat(heads, spec.shape[-1] // made[0].size, axis=0).reshape(-1)
    return inputs if len(inputs) == spec.shape[-1] else None


def _output_squares(checkpoint: Checkpoint, spec: TensorSpec, inputs: Squares, pool: ThreadPoolExecutor) -> Squares:
    """The mean square of each row's output [rows]: a norm leaves a mean square of 1 before its weight."""
    rows = num_rows(spec.shape)
    step = max(1, PIECE_VALUES // spec.shape[-1])

    def squares(row: int) -> Squares:
        with np.errstate(all="ignore"):
            found: Squares = np.square(_values(checkpoint, spec.name, row, min(row + step, rows))) @ inputs
        return found

    return np.concatenate(list(pool.map(squares, range(0, rows, step))))


def _squared_silu(variance: Squares) -> Squares:
    """The mean of silu(a)^2 over normally distributed a of mean 0."""
    a = np.sqrt(variance)[:, None] * _POINTS
    silu = a * (1 + np.tanh(a / 2)) / 2
    mean: Squares = np.square(silu) @ (_SHARES / _SHARES.sum())
    return mean


def _values(checkpoint: Checkpoint, name: str, first: int, last: int) -> Squares:
    """Some rows as float64; the pages of the file they lie in are given back."""
    source = checkpoint.source(name)
    data = source.read(first, last)
    values = dequantize(source.dtype, data, (len(data), source.shape[-1])).astype(np.float64)
    for tensor in source.tensors:
        tensor.file.drop_pages(tensor.offset, tensor.num_bytes)
    return values
