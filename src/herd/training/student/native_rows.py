"""Norms, rotations, gates and the softmax of the vocabulary by the native kernels, forwards and backwards (`csrc/learning/rows.h`).

On a processor, in 16 and 32 bits. Rows are read and written once in each pass, in their own type; sums are in 32 bits.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from herd import _core

SCALE_ROWS = 16
"""Rows whose slopes of a norm's scales are summed together (`kScaleRows` of rows.h)."""
_SLOW = "portable"
"""Without vector instructions torch's own operations are faster."""


@cache
def fastest_isa() -> str:
    """The instruction set that kernels of training are taken from."""
    return str(_core.available_isas()[-1])


def is_native(x: Tensor) -> bool:
    """Whether the kernels take tensors of this type, where this one is."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and fastest_isa() != _SLOW


def rms_norm(x: Tensor, scales: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """y = x factor scales, of the last axis, and the factor of each row."""
    rows = _rows(x)
    y, factors = torch.empty(x.shape, dtype=x.dtype), torch.empty(len(rows), dtype=torch.float32)
    _kernels().rms_norm(rows, scales, eps, y.view(rows.shape), factors)
    return y, factors


def rms_norm_backward(x: Tensor, scales: Tensor | None, factors: Tensor, dy: Tensor, wants_scales: bool) -> tuple[Tensor, Tensor | None]:
    """What comes back to x, and to the scales."""
    rows = _rows(x)
    for_x = torch.empty(x.shape, dtype=x.dtype)
    parts = torch.zeros((-(-len(rows) // SCALE_ROWS), rows.shape[1])) if wants_scales else None
    _kernels().rms_norm_backward(rows, scales, factors, _rows(dy), for_x.view(rows.shape), parts)
    return for_x, None if parts is None else parts.sum(dim=0)


def rotate(x_TNH: Tensor, rotary_TH: Tensor, *, back: bool = False) -> Tensor:
    """Pairs of neighbours as complex numbers, turned by the angles, or back."""
    y_TNH = torch.empty(x_TNH.shape, dtype=x_TNH.dtype)
    x_TD = _rows(_detached(x_TNH).flatten(1))
    _kernels().rotate(x_TD, x_TNH.shape[1], rotary_TH[0], rotary_TH[1], back, y_TNH.flatten(1))
    return y_TNH


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    y = torch.empty(gate.shape, dtype=gate.dtype)
    gates = _rows(gate)
    _kernels().silu_gate(gates, _rows(up), y.view(gates.shape))
    return y


def silu_gate_backward(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """What comes back to both: the halves of one tensor, side by side as their matrices' products may be."""
    gates = _rows(gate)
    both = torch.empty((len(gates), 2 * gates.shape[1]), dtype=gate.dtype)
    for_gate, for_up = both.chunk(2, dim=1)
    _kernels().silu_gate_backward(gates, _rows(up), _rows(dy), for_gate, for_up)
    return for_gate.view(gate.shape), for_up.view(gate.shape)


def softmax(logits_RV: Tensor, targets_R: Tensor, z_loss: float, *, with_slopes: bool) -> tuple[Tensor, Tensor]:
    """log p(target) and log sum exp of each row. `with_slopes`: the logits become (1 + 2 z_loss lse) softmax - 1[target]."""
    logprobs_R, lse_R = (torch.empty(len(logits_RV), dtype=torch.float32) for _ in range(2))
    _kernels().softmax(_detached(logits_RV), targets_R, z_loss, with_slopes, logprobs_R, lse_R)
    return logprobs_R, lse_R


def _kernels() -> _core.LearnRows:
    return _made(torch.get_num_threads())


@cache
def _made(threads: int) -> _core.LearnRows:
    return _core.LearnRows(fastest_isa(), threads)


def _detached(x: Tensor) -> Tensor:
    """Without gradients, which the kernels do not know."""
    return x.detach()


def _rows(x: Tensor) -> Tensor:
    """[rows, last axis], the numbers of a row side by side."""
    rows = x.detach()
    if rows.dim() != 2:
        rows = rows.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
