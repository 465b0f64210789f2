"""Single native kernels, and what encoders are made of, against numpy: odd shapes, one row, no rows, every instruction set."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from herd.backends.reference.arrays import Arrays, rounded
from herd.backends.reference.picture_ops import NumpyPictureOps
from herd.dtypes import BF16, F16, F32, Q4_K, Q8_0, DType
from herd.models.weights import Adapted, Kind, Matrix, TensorSpec, stored
from herd.quant import quantize
from tiny import dense_f32

_core = pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
packed = pytest.importorskip("herd.backends.cpu.packed")
picture_ops = pytest.importorskip("herd.backends.cpu.picture_ops")

Floats = NDArray[np.float32]
WIDE_PICTURES = NumpyPictureOps(Arrays(np.dtype(np.float64)), np.dtype(np.float64))


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def matrix(dtype: DType, *shape: int, seed: int = 0) -> Matrix:
    """A random matrix, or a stack of them."""
    values = normal(*shape, seed=seed) * np.float32(1.5 / shape[-1] ** 0.5)
    return stored(dtype, shape, quantize(dtype, values.reshape(-1, shape[-1])))


@pytest.fixture(params=_core.available_isas())
def machine(request: pytest.FixtureRequest) -> Any:
    return _core.Machine(2, request.param)


def relative(found: Floats, exact: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(found - exact) / np.maximum(np.abs(exact), 1e-30)))


# Single kernels


def test_the_soft_cap_errs_relative_to_its_value(machine: Any) -> None:
    x = np.concatenate([np.linspace(-300, 300, 6001), normal(5000) * 20, np.geomspace(1e-30, 1, 500)]).astype(np.float32)
    y = np.empty_like(x)
    _core.soft_cap(machine, x, 0.7, 30.0, y)
    assert relative(y, 30 * np.tanh(x.astype(np.float64) * (np.float32(0.7) / np.float32(30)).astype(np.float64))) < 6e-7
    _core.soft_cap(machine, np.array([np.inf, -np.inf, 0], np.float32), 1.0, 5.0, y[:3])
    assert y[:3].tolist() == [5.0, -5.0, 0.0]
    _core.soft_cap(machine, np.array([np.nan], np.float32), 1.0, 5.0, y[:1])
    assert np.isnan(y[0])


def test_gelu_is_near_float64_from_end_to_end(machine: Any) -> None:
    x = np.concatenate([np.linspace(-14, 14, 28001), [0.0, 100.0, -100.0, 3e38, -3e38]]).astype(np.float32)
    y = np.empty_like(x)
    _core.gelu(machine, x, y)
    exact = np.array([value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in x.astype(np.float64)])
    assert np.max(np.abs(y - exact) / np.maximum(np.abs(exact), 1.0)) < 3e-7
    is_far = (x < 0) & (x > -8)
    assert relative(y[is_far], exact[is_far]) < 8e-6
    _core.gelu(machine, np.array([np.inf, np.nan], np.float32), y[:2])
    assert y[0] == np.inf and np.isnan(y[1])


def test_the_sigmoid_gate_is_near_float64_from_end_to_end(machine: Any) -> None:
    gate = np.linspace(-80, 120, 5003, dtype=np.float32)
    x, y = normal(5003), np.empty_like(gate)
    _core.sigmoid_gate(machine, x, gate, y)
    assert relative(y, x / (1 + np.exp(-gate.astype(np.float64)))) < 6e-7


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (5, 1280), (0, 16), (40, 33)])
def test_layer_norms_are_near_float64(machine: Any, rows: int, width: int) -> None:
    x, weight, bias = normal(rows, width) * 3 + 100, normal(width, seed=1), normal(width, seed=2)
    y = np.empty_like(x)
    _core.layer_norm(machine, x, weight, bias, 1e-5, y)
    exact = WIDE_PICTURES.layer_norm(x.astype(np.float64), dense_f32(weight), dense_f32(bias), 1e-5)
    assert np.allclose(y, exact, rtol=2e-6, atol=2e-5)


# Encoders


def packed_with(machine: Any, leaf: Matrix, kind: Kind = Kind.MATRIX, activations: str = "float32") -> Any:
    return packed.Packer(machine, activations, None).pack(TensorSpec("leaf", tuple(leaf.shape), kind), leaf)


@pytest.mark.parametrize("isa", _core.available_isas())
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.integers(1, 70), st.integers(1, 90), st.sampled_from([F32, F16, BF16]), st.booleans())
def test_products_of_encoders_are_near_float64_in_every_shape(
    isa: str, rows: int, columns: int, out: int, dtype: DType, has_bias: bool
) -> None:
    machine = _core.Machine(2, isa)
    leaf, bias, x = matrix(dtype, out, columns), dense_f32(normal(out, seed=3)), normal(rows, columns, seed=4)
    ops = picture_ops.CpuPictureOps(machine)
    found = ops.linear(x, packed_with(machine, leaf), packed_with(machine, bias, Kind.BIAS) if has_bias else None)
    seen = rounded(x, BF16) if dtype is BF16 and machine.multiplies_bf16 else x
    exact = WIDE_PICTURES.linear(seen.astype(np.float64), leaf, bias if has_bias else None)
    assert found.shape == (rows, out) and np.allclose(found, exact, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [BF16, Q8_0], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("isa", _core.available_isas())
def test_products_of_encoders_have_the_same_bits_for_any_rows_and_threads(isa: str, dtype: DType, threads: int) -> None:
    leaf, x = matrix(dtype, 50, 256), normal(600, 256)
    machines = [_core.Machine(each, isa) for each in (2, threads)]
    ours, other = (picture_ops.CpuPictureOps(each).linear for each in machines)
    matrices = [packed_with(each, leaf, activations="int8") for each in machines]
    whole = ours(x, matrices[0])
    assert np.array_equal(other(x, matrices[1]), whole)
    assert np.array_equal(np.concatenate([other(x[:1], matrices[1]), other(x[1:257], matrices[1]), other(x[257:], matrices[1])]), whole)


@pytest.mark.parametrize("isa", _core.available_isas())
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=3),
    st.sampled_from([(1, 1, 16), (4, 2, 8), (6, 2, 20), (3, 3, 33)]),
    st.sampled_from(["none", "some", "all", "empty"]),
)
def test_attention_of_encoders_is_near_float64(isa: str, lengths: list[int], heads: tuple[int, int, int], pads: str) -> None:
    machine = _core.Machine(2, isa)
    num_heads, kv_heads, width = heads
    rows = sum(lengths)
    q, k, v = normal(rows, num_heads, width), normal(rows, kv_heads, width, seed=1), normal(rows, kv_heads, width, seed=2)
    padding = {"none": None, "all": [True] * rows, "empty": [False] * rows}.get(pads, [index % 5 > 2 for index in range(rows)])
    found = picture_ops.CpuPictureOps(machine).attend(q, k, v, width**-0.5, lengths, padding)
    # The definition in float32: that pairs of padding are pushed below all others is a property of that type.
    plain = NumpyPictureOps(Arrays(np.dtype(np.float32)), np.dtype(np.float32)).attend(q, k, v, width**-0.5, lengths, padding)
    assert np.allclose(found, plain, rtol=1e-4, atol=1e-5)


def test_rows_of_adapted_and_quantised_tables_are_those_of_the_definition() -> None:
    machine = _core.Machine(1, "portable")
    base, down, up = matrix(Q4_K, 20, 256), dense_f32(normal(3, 256)), dense_f32(normal(20, 3))
    leaf = Adapted(cast(Any, base), down, up, 0.5)
    rows = [3, 19, 3]
    found = picture_ops.CpuPictureOps(machine).embed(rows, packed_with(machine, leaf, Kind.EMBEDDING))
    assert np.allclose(found, WIDE_PICTURES.embed(rows, leaf), atol=1e-5)
    found = picture_ops.CpuPictureOps(machine).embed([7, 1], packed_with(machine, base, Kind.EMBEDDING), aliases={7: 2})
    assert np.array_equal(found, WIDE_PICTURES.embed([2, 1], base).astype(np.float32))
