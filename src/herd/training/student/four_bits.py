"""Learning for four bits: weights are used as they will be stored, and learned as if they were not (arXiv 1712.05877).

    w ~ d * q      q a whole number from -8 to 7, d one float16 for each group of 32 in a row, its largest |w| / 7.5
    x ~ s * i      i a whole number from -127 to 127, s one number a token, its largest |x| / 127

The rounding has slope 1 on the way back (straight through). What was learned is stored as blocks of Q4_0, which hold exactly the d and
the q that were learned with. With low-rank updates the frozen model is stored that way before learning begins, and only what it is
multiplied with is rounded: the update's own product is not. So were the int4 releases of Llama 3.2 made.

Where an engine draws answers from the weights that learn, tokens stay exact (`exact_tokens` of a student). Their rounding is a function
with steps, which makes a last bit's difference grow from layer to layer: in SmolLM2-135M float32 and float64 of the very same function
differ by 0.07 in the mean of log p where groups of 32 are rounded, by 0.19 where whole tokens are, and engine and trainer would by as much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.backends.torch.tensors import Tensors
from herd.dtypes import Q4_0
from herd.errors import UsageError
from herd.models.weights import Blocks, Dense, Kind, Matrix, TensorSpec

GROUP = 32
LOWEST, HIGHEST = -8, 7
KINDS = (Kind.MATRIX, Kind.EXPERTS)


def is_rounded(spec: TensorSpec) -> bool:
    """Whether a weight is learned for four bits: the matrices of the text model. `UsageError` for rows that hold no whole groups."""
    if spec.kind not in KINDS or spec.name.startswith("vision"):
        return False
    if spec.shape[-1] % GROUP:
        raise UsageError(f"{spec.name} has rows of {spec.shape[-1]} values; learning for four bits needs a multiple of {GROUP}.")
    return True


def rounded(values: Tensor) -> Tensor:
    """The nearest values that four bits hold; the gradient goes through unchanged."""
    found: Tensor = _Through.apply(values, on_grid)  # type: ignore[no-untyped-call]
    return found


def rounded_tokens(x: Tensor) -> Tensor:
    """x [T, in] as 8 bits a token hold it; the gradient goes through unchanged."""
    found: Tensor = _Through.apply(x, _tokens_on_grid)  # type: ignore[no-untyped-call]
    return found


def on_grid(values: Tensor) -> Tensor:
    """d * q of each group, in the type of `values`."""
    q, d = _quantised(values)
    return (q * d).reshape(values.shape).to(values.dtype)


def stored(values: Tensor, shape: tuple[int, ...]) -> Blocks:
    """The same as blocks of Q4_0."""
    q, d = _quantised(values.detach().to("cpu"))
    codes = (q - LOWEST).to(torch.uint8)
    bits = codes[:, : GROUP // 2] | (codes[:, GROUP // 2 :] << 4)
    blocks = torch.cat([d.to(torch.float16).view(torch.uint8), bits], dim=1)
    data = np.ascontiguousarray(blocks.numpy()).reshape(-1, Q4_0.row_bytes(shape[-1]))
    return Blocks(Q4_0, shape, data)


def _quantised(values: Tensor) -> tuple[Tensor, Tensor]:
    """q and d, float32 [groups, 32] and [groups, 1]."""
    groups = values.detach().float().reshape(-1, GROUP)
    d = (groups.abs().amax(dim=1, keepdim=True) / 7.5).to(torch.float16).float()
    q = torch.where(d > 0, groups / d, torch.zeros_like(groups)).round().clamp(LOWEST, HIGHEST)
    return q, d


def _tokens_on_grid(x: Tensor) -> Tensor:
    wide = x.float()
    scale = (wide.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return ((wide / scale).round() * scale).to(x.dtype)


class FourBitTensors(Tensors):
    """Tensors of which some are learned for four bits: they are given out rounded."""

    def __init__(self, device: torch.device, dtype: torch.dtype, keep_bytes: int = 0) -> None:
        super().__init__(device, dtype, keep_bytes)
        self._rounded: set[int] = set()

    def round(self, leaf: Dense) -> None:
        """From now on this one is."""
        self._rounded.add(id(leaf))

    def get(self, leaf: Dense | Blocks) -> Tensor:
        values = super().get(leaf)
        return rounded(values) if id(leaf) in self._rounded else values

    def expert(self, leaf: Matrix, index: int | Tensor) -> Tensor:
        values = super().expert(leaf, index)
        return rounded(values) if id(leaf) in self._rounded else values


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, function: Any) -> Tensor:
        made: Tensor = function(values)
        return made

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient, None
