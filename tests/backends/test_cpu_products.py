"""Products of block formats with activations, in shapes drawn by chance, against numpy; and steps that hold nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from herd.backends.base import BackendOptions, Plan, Span
from herd.dtypes import BLOCK, DType
from herd.errors import UsageError
from herd.models.weights import stored
from herd.quant import dequantize, quantize, quantize_activations
from tiny import random_leaves, tiny_llama

_core = pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
cpu = pytest.importorskip("herd.backends.cpu")
packed = pytest.importorskip("herd.backends.cpu.packed")

Wide = NDArray[np.float64]
# Float32 sums of a group of 32 columns, of the groups, and what a scale and a minimum add to each of them.
ROUNDINGS = 48


def product(isa: str, activations: str, dtype: DType, w_OD: NDArray[np.float32], x_TD: NDArray[np.float32]) -> NDArray[np.float32]:
    """x w, natively, of weights stored in this format."""
    machine = _core.Machine(1, isa)
    leaf = stored(dtype, w_OD.shape, quantize(dtype, w_OD))
    y_TO = np.empty((len(x_TD), len(w_OD)), np.float32)
    _core.linear(machine, packed.Packer(machine, activations, None).matrix(leaf).native, None, x_TD, y_TO)
    return y_TO


def exact_product(activations: str, dtype: DType, w_OD: NDArray[np.float32], x_TD: NDArray[np.float32]) -> tuple[Wide, Wide]:
    """The same in float64 of what is multiplied, and the sums of magnitudes that errors are proportional to."""
    w = dequantize(dtype, quantize(dtype, w_OD), w_OD.shape).astype(np.float64)
    x = x_TD.astype(np.float64)
    if activations == "int8":
        q_TD, scale_TG = quantize_activations(x_TD)
        x = q_TD * np.repeat(scale_TG.astype(np.float64), 32, axis=1)
    # A minimum is added to codes that are all positive, so what is summed is larger than the weight: by two ranges of its block at most.
    return x @ w.T, np.abs(x) @ (np.abs(w) + 2 * np.abs(w).max()).T


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize("dtype", BLOCK, ids=lambda dtype: dtype.name)
@settings(max_examples=12, deadline=None)
@given(tokens=st.integers(1, 40), rows=st.integers(1, 40), blocks=st.integers(1, 5), activations=st.sampled_from(["int8", "float32"]))
def test_products_of_blocks_are_those_of_numpy_in_every_shape(
    isa: str, dtype: DType, tokens: int, rows: int, blocks: int, activations: str
) -> None:
    random = np.random.default_rng([tokens, rows, blocks])
    w_OD = random.standard_normal((rows, blocks * dtype.block)).astype(np.float32)
    x_TD = random.standard_normal((tokens, blocks * dtype.block)).astype(np.float32)
    exact, magnitude = exact_product(activations, dtype, w_OD, x_TD)
    error = np.abs(product(isa, activations, dtype, w_OD, x_TD) - exact)
    assert np.max(error / magnitude) < ROUNDINGS * np.finfo(np.float32).eps


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize("dtype", BLOCK, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (1, 17), (33, 1)], ids=["one by one", "one token", "one row"])
def test_one_row_one_token_and_one_block_are_products_too(isa: str, dtype: DType, tokens: int, rows: int) -> None:
    random = np.random.default_rng([tokens, rows])
    w_OD, x_TD = (random.standard_normal((count, dtype.block)).astype(np.float32) for count in (rows, tokens))
    x_TD[0] = 0.0
    exact, magnitude = exact_product("int8", dtype, w_OD, x_TD)
    found = product(isa, "int8", dtype, w_OD, x_TD)
    assert np.all(found[0] == 0.0) and np.all(np.abs(found - exact) <= ROUNDINGS * np.finfo(np.float32).eps * magnitude)


@pytest.mark.parametrize(
    ("spans", "complaint"),
    [((), "a step needs at least one token"), ((([], 0),), "span 0 has no tokens"), ((([1, 2], 1), ([], 0)), "span 1 has no tokens")],
    ids=["no spans", "an empty span", "an empty span beside another"],
)
def test_a_step_that_holds_nothing_is_refused_by_name_and_changes_nothing(spans: tuple[Any, ...], complaint: str) -> None:
    cfg = tiny_llama(num_layers=1)
    backend = cpu.CpuBackend(cfg, random_leaves(cfg).__getitem__, BackendOptions(threads=1, max_step_tokens=16), lambda: None)
    backend.allocate(3)
    backend.step(Plan((Span(0, [5, 6, 7], [0], 1),)))
    before = [backend.read_page(page) for page in range(3)]
    with pytest.raises(UsageError, match=complaint):
        backend.step(Plan(tuple(Span(0, tokens, [1 + at], outputs) for at, (tokens, outputs) in enumerate(spans))))
    assert [backend.read_page(page) for page in range(3)] == before
    backend.close()
