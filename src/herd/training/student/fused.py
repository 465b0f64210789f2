"""The operations that a student spends its time in between the products, each one step forwards and one backwards.

On a processor they are kernels (`native_rows.py`). The same values as `backends/torch/ops.py` (16 bits rounded where an operation ends,
sums in 32 or more); what is gained is on the way back: autograd keeps and walks every intermediate value of a chain, these keep their
arguments and no more.

    rms_norm     keeps x and one number per row
    rotate       keeps nothing but the angles, turns back by the opposite ones
    silu_gate    keeps gate and up
    adapted      x W^T with an update keeps x and the few columns of x down^T; a base in blocks is decoded again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from herd.backends.torch.ops import TorchOps
from herd.backends.torch.tensors import Tensors
from herd.models.weights import Adapted, Blocks, Dense, Matrix, Vector
from herd.training.student import native_rows
from herd.training.student.joined import Joined, Products


class FusedOps(TorchOps):
    """Mixed into the operations of a student. `joined`: groups of matrices that are multiplied as one, by their leaves."""

    def __init__(self, tensors: Tensors, *, is_static: bool = False) -> None:
        super().__init__(tensors, is_static=is_static)
        self.joined: dict[int, Joined] = {}
        self._waiting: Waiting | None = None

    def rms_norm(self, x: Tensor, weight: Vector | None, eps: float, *, centred: bool = False) -> Tensor:
        if not torch.is_grad_enabled():
            return super().rms_norm(x, weight, eps, centred=centred)
        values = None if weight is None else self._tensors.vector(weight)
        y: Tensor = _RmsNorm.apply(x, values, eps, centred)  # type: ignore[no-untyped-call]
        return y

    def rotate(self, x_TNH: Tensor, rotary_TH: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or 2 * rotary_TH.shape[-1] != x_TNH.shape[-1]:
            return super().rotate(x_TNH, rotary_TH)
        y: Tensor = _Rotate.apply(x_TNH, rotary_TH)  # type: ignore[no-untyped-call]
        return y

    def silu_gate(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().silu_gate(gate_TF, up_TF)
        y: Tensor = _SiluGate.apply(gate_TF, up_TF)  # type: ignore[no-untyped-call]
        return y

    def linear(self, x: Tensor, w: Matrix, bias: Vector | None = None) -> Tensor:
        group = self.joined.get(id(w)) if torch.is_grad_enabled() else None
        if group is not None:
            made = self._from_group(group, x, w)
            return made if bias is None else made + self._tensors.get(bias)
        if not (isinstance(w, Adapted) and torch.is_grad_enabled()) or self._tensors.get(w.down).dtype != x.dtype:
            return super().linear(x, w, bias)
        down, up = self._tensors.get(w.down), self._tensors.get(w.up)
        y: Tensor = _AdaptedLinear.apply(self._tensors, x, w.base, down, up, w.scale)  # type: ignore[no-untyped-call]
        return y if bias is None else y + self._tensors.get(bias)

    def _from_group(self, group: Joined, x: Tensor, w: Matrix) -> Tensor:
        """What `w` makes of x; what the others of its group make of it waits for their turn."""
        if self._waiting is None or self._waiting.group is not group or self._waiting.x is not x or id(w) not in self._waiting.made:
            updates = [self._tensors.get(part) for which in ("down", "up") for part in (getattr(leaf, which) for leaf in group.leaves)]
            made = Products.apply(group, x, *updates)  # type: ignore[no-untyped-call]
            self._waiting = Waiting(group, x, {id(leaf): y for leaf, y in zip(group.leaves, made, strict=True)})
        y = self._waiting.made.pop(id(w))
        if not self._waiting.made:
            self._waiting = None
        return y


@dataclass(slots=True, eq=False)
class Waiting:
    """What a group of matrices made of x and nobody has asked for yet."""

    group: Joined
    x: Tensor
    made: dict[int, Tensor]


class _RmsNorm(torch.autograd.Function):
    """y = n w with n = x r, r = 1 / sqrt(mean(x^2) + eps).   dx = r (w dy - n mean(w dy n)),   dw = sum(dy n)."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor | None, eps: float, centred: bool) -> Tensor:
        context.centred = centred
        if native_rows.is_native(x):
            y, factors = native_rows.rms_norm(x, _scales(weight, centred), eps)
            context.save_for_backward(x, weight, factors)
            return y
        wide = x.to(_wide(x))
        factor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        context.save_for_backward(x, weight, factor)
        z: Tensor = wide * factor
        if weight is not None:
            z.mul_(1 + weight if centred else weight)
        return z.to(x.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, factor = context.saved_tensors
        if native_rows.is_native(x):
            scales = _scales(weight, context.centred)
            return *native_rows.rms_norm_backward(x, scales, factor, gradients[0], context.needs_input_grad[1]), None, None
        dy = gradients[0].to(factor.dtype)
        n = x.to(factor.dtype) * factor
        for_weight = None
        if context.needs_input_grad[1]:
            for_weight = (dy * n).flatten(0, -2).sum(dim=0)
        if not context.needs_input_grad[0]:
            return None, for_weight, None, None
        if weight is not None:
            dy = dy * (1 + weight if context.centred else weight)
        along = torch.linalg.vecdot(dy, n)[..., None].div_(-x.shape[-1])
        return torch.addcmul(dy, n, along).mul_(factor).to(x.dtype), for_weight, None, None


def _scales(weight: Tensor | None, centred: bool) -> Tensor | None:
    """What a norm multiplies with."""
    if weight is None:
        return None
    return 1 + weight.detach() if centred else weight.detach()


class _Rotate(torch.autograd.Function):
    """Pairs of values as complex numbers, turned by the angles and back."""

    @staticmethod
    def forward(context: Any, x_TNH: Tensor, rotary_TH: Tensor) -> Tensor:
        context.save_for_backward(rotary_TH)
        if native_rows.is_native(x_TNH):
            return native_rows.rotate(x_TNH, rotary_TH)
        return _turn(x_TNH, torch.complex(rotary_TH[0], rotary_TH[1]))

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None]:
        (rotary_TH,) = context.saved_tensors
        if native_rows.is_native(gradients[0]):
            return native_rows.rotate(gradients[0], rotary_TH, back=True), None
        return _turn(gradients[0], torch.complex(rotary_TH[0], -rotary_TH[1])), None


def _turn(x_TNH: Tensor, factors_Th: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x_TNH.to(_wide(x_TNH)).reshape(*x_TNH.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * factors_Th[:, None]).flatten(-2).to(x_TNH.dtype)


class _SiluGate(torch.autograd.Function):
    """y = silu(gate) up."""

    @staticmethod
    def forward(context: Any, gate: Tensor, up: Tensor) -> Tensor:
        context.save_for_backward(gate, up)
        if native_rows.is_native(gate):
            return native_rows.silu_gate(gate, up)
        return functional.silu(gate.to(_wide(gate))).mul_(up).to(gate.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        gate, up = context.saved_tensors
        if native_rows.is_native(gate):
            return native_rows.silu_gate_backward(gate, up, gradients[0])
        wide, dy = gate.to(_wide(gate)), gradients[0].to(_wide(gate))
        for_up = functional.silu(wide).mul_(dy).to(up.dtype)
        for_gate = torch.ops.aten.silu_backward(dy * up, wide)
        return for_gate.to(gate.dtype), for_up


class _AdaptedLinear(torch.autograd.Function):
    """y = scale (x down^T) up^T + x W^T, rounded once; W is not learned. With l = x down^T and dl = scale dy up:
    dx = dy W + dl down,   d down = dl^T x,   d up = scale dy^T l."""

    @staticmethod
    def forward(context: Any, tensors: Tensors, x: Tensor, base: Dense | Blocks, down: Tensor, up: Tensor, scale: float) -> Tensor:
        low = x @ down.T
        context.save_for_backward(x, low, down, up)
        context.of = (tensors, base, scale)
        return (low @ up.T).addmm_(x, tensors.get(base).T, beta=scale)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[None, Tensor | None, None, Tensor | None, Tensor | None, None]:
        x, low, down, up = context.saved_tensors
        tensors, base, scale = context.of
        (dy,) = gradients
        dlow = (dy @ up).mul_(scale)
        for_x = (dlow @ down).addmm_(dy, tensors.get(base)) if context.needs_input_grad[1] else None
        for_down = dlow.T @ x if context.needs_input_grad[3] else None
        for_up = (dy.T @ low).mul_(scale) if context.needs_input_grad[4] else None
        return None, for_x, None, for_down, for_up, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
