"""Single native kernels against numpy, and the limits that `herd bench` compares with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from herd.dtypes import BF16, Q4_0, Q6_K, DType
from herd.errors import UsageError

_core = pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
limits = pytest.importorskip("herd.backends.cpu.limits")
reached = pytest.importorskip("herd.backends.cpu.reached")


@pytest.fixture(params=_core.available_isas())
def machine(request: pytest.FixtureRequest) -> object:
    return _core.Machine(1, request.param)


def test_the_exponential_errs_by_two_units_at_most(machine: object) -> None:
    x = np.random.default_rng(0).uniform(-86.9, 88, 100_000).astype(np.float32)
    y = np.empty_like(x)
    _core.exponential(machine, x, y)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(y - exact) / np.spacing(exact.astype(np.float32))) <= 2


def test_norms_of_rows_are_near_float64(machine: object) -> None:
    random = np.random.default_rng(1)
    x_TD, weight_D = random.standard_normal((5, 577)).astype(np.float32), random.standard_normal(577).astype(np.float32)
    y_TD = np.empty_like(x_TD)
    _core.rms_norm(machine, x_TD, weight_D, 1e-5, y_TD)
    wide = x_TD.astype(np.float64)
    exact = wide / np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + 1e-5) * weight_D
    assert np.max(np.abs(y_TD - exact)) < 1e-6


def test_the_gate_is_near_float64_from_end_to_end(machine: object) -> None:
    gate = np.linspace(-120, 120, 5000, dtype=np.float32)
    up, y = np.full_like(gate, 0.5), np.empty_like(gate)
    _core.silu_gate(machine, gate, up, y)
    wide = gate.astype(np.float64)
    exact = wide / (1 + np.exp(-wide)) / 2
    assert np.max(np.abs(y - exact) / (np.abs(exact) + 1e-30)) < 1e-6 or np.max(np.abs(y - exact)) < 1e-6


def test_arguments_that_disagree_are_refused_by_name_and_symbol(machine: object) -> None:
    x_TD = np.zeros((2, 8), np.float32)
    with pytest.raises(ValueError, match=r"weight has shape \[7\]; axis 0 must be D = 8 \(from x\)"):
        _core.rms_norm(machine, x_TD, np.zeros(7, np.float32), 1e-5, x_TD.copy())
    with pytest.raises(ValueError, match=r"x has shape \[8\]; expected 2 axes"):
        _core.rms_norm(machine, x_TD[0], None, 1e-5, x_TD.copy())


def test_matrices_that_cannot_be_are_refused(machine: object) -> None:
    data = np.zeros(100, np.uint8)
    with pytest.raises(ValueError, match="data has 100 bytes, expected 128"):
        _core.Matrix(machine, 0, "int8", 4, 8, data)
    with pytest.raises(ValueError, match="storage 99"):
        _core.Matrix(machine, 99, "int8", 4, 8, data)
    with pytest.raises(ValueError, match="columns is 8, expected a multiple of the block of 32"):
        _core.Matrix(machine, 2, "int8", 4, 8, data)


@pytest.mark.parametrize("isa", _core.available_isas())
def test_the_peak_of_bf16_is_that_of_the_instruction_set_in_use(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_ISA", isa)
    assert limits.multiplies_bf16() is (isa == "avx512bf16")
    if limits.multiplies_bf16():
        assert limits.measure_peak("bf16", 1) > limits.measure_peak("float32", 1)
    else:
        with pytest.raises(UsageError, match=f"{isa} has no dot product of bf16"):
            limits.measure_peak("bf16", 1)
        with pytest.raises(ValueError, match="no dot product of bf16"):
            _core.Machine(1, isa).bf16_operations_per_second(10)


def test_limits_are_rates_a_second() -> None:
    """Not in nanoseconds, and not of nothing; how fast this machine is is nothing that a test can say."""
    assert limits.measure_bandwidth(1) > 1e7
    assert limits.measure_int8(1) > 1e7 and limits.measure_float32(1) > 1e7


@pytest.mark.parametrize(("dtype", "kv_cache"), [(Q4_0, "auto"), (BF16, "float32"), (Q6_K, "int8")], ids=["q4_0", "bf16", "q6_k int8"])
def test_what_a_layer_reaches_is_measured_in_every_kind_of_format(dtype: DType, kv_cache: str) -> None:
    layer = dataclasses.replace(reached.LAYER, width=256, num_heads=4, num_kv_heads=2, ffn_width=512)
    found = reached.measure_layer(dtype, kv_cache, 1, layer)
    assert found.products > 1e7 and (found.attention is None or found.attention > 1e6)
