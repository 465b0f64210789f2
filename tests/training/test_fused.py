"""Each fused operation against the chain of plain ones: values and gradients in float64, and in 16 bits no further from the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch
from torch import Tensor

from herd import dtypes
from herd.backends.torch.ops import TorchOps
from herd.backends.torch.tensors import Tensors
from herd.dtypes import F32
from herd.models.weights import Adapted, Dense, stored
from herd.quant import quantize
from herd.training.student.fused import FusedOps

CPU = torch.device("cpu")
Operation = Callable[[TorchOps], Tensor]


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return values.to(dtype).requires_grad_()


def learned(tensors: Tensors, values: Tensor) -> Dense:
    leaf = Dense(F32, tuple(values.shape), None)
    tensors.bind(leaf, values)
    return leaf


def compare(inputs: list[Tensor], made: Callable[[Tensors, list[Tensor]], Operation]) -> None:
    """Values and gradients by plain and fused operations: equal in float64; in the type of the inputs as near to that as plain."""

    def found(of: type[TorchOps], dtype: torch.dtype) -> list[Tensor]:
        tensors = Tensors(CPU, dtype)
        values = [x.detach().to(dtype).requires_grad_() for x in inputs]
        y = made(tensors, values)(of(tensors))
        weights = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        return [each.detach().double() for each in (y, *torch.autograd.grad((y.double() * weights).sum(), values))]

    exact = found(TorchOps, torch.float64)
    for ours, theirs in zip(found(FusedOps, torch.float64), exact, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-11)
    for dtype in (torch.float32, torch.bfloat16):
        for ours, theirs, truth in zip(found(FusedOps, dtype), found(TorchOps, dtype), exact, strict=True):
            nearest = 2 * (theirs - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
            assert (ours - truth).abs().max() <= nearest


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [(5, 24), (5, 3, 8)])
def test_norms(shape: tuple[int, ...], centred: bool) -> None:
    def made(tensors: Tensors, values: list[Tensor]) -> Operation:
        return lambda ops: ops.rms_norm(values[0], learned(tensors, values[1]), 1e-5, centred=centred)

    compare([random(*shape), random(shape[-1], seed=1)], made)
    compare([random(*shape)], lambda tensors, values: lambda ops: ops.rms_norm(values[0], None, 1e-5))


def test_rotations() -> None:
    def made(tensors: Tensors, values: list[Tensor]) -> Operation:
        return lambda ops: ops.rotate(values[0], ops.rotary(torch.arange(3, 9), [1.0, 0.3, 0.1, 0.01], 1.2))

    compare([random(6, 2, 8)], made)
    compare([random(6, 2, 12)], made)  # the rest of a head keeps its values


def test_gates() -> None:
    compare([random(5, 24), random(5, 24, seed=1)], lambda tensors, values: lambda ops: ops.silu_gate(values[0], values[1]))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("base", ["plain", "in blocks"])
def test_products_with_updates(base: str, has_bias: bool) -> None:
    values = np.random.default_rng(3).standard_normal((24, 32)).astype(np.float32)
    kind = F32 if base == "plain" else dtypes.Q8_0
    leaf = stored(kind, (24, 32), quantize(kind, values) if kind.is_block else values.view(np.uint8))

    def made(tensors: Tensors, values: list[Tensor]) -> Operation:
        adapted = Adapted(leaf, learned(tensors, values[1]), learned(tensors, values[2]), 0.5)
        bias = learned(tensors, values[3]) if has_bias else None
        return lambda ops: ops.linear(values[0], adapted, bias)

    inputs = [random(7, 32), random(4, 32, seed=1), random(24, 4, seed=2)]
    compare([*inputs, random(24, seed=3)] if has_bias else inputs, made)


def test_inputs_that_are_not_learned_from_get_no_gradient() -> None:
    """As those of the first layer, which come from an embedding that stays as it is."""
    tensors = Tensors(CPU, torch.float64)
    down, up = random(4, 32), random(24, 4)
    leaf = Adapted(learned(tensors, random(24, 32).detach()), learned(tensors, down), learned(tensors, up), 1.0)
    x = random(7, 32).detach()
    multiplied: list[int] = []
    get = tensors.get
    tensors.get = lambda each: (multiplied.append(id(each)), get(each))[1]  # type: ignore[assignment,func-returns-value]
    y = FusedOps(tensors).linear(x, leaf)
    multiplied.clear()
    y.sum().backward()
    assert down.grad is not None and up.grad is not None
    assert id(leaf.base) not in multiplied, "on the way back nobody asked for the base"
