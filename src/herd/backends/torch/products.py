"""x w^T, with what is added to it before the one rounding, forwards and backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from herd.backends.torch.tensors import Tensors
from herd.models.weights import Blocks, Dense


def product(tensors: Tensors, x: Tensor, w: Dense | Blocks, added: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """x [T, in], w [out, in] -> scale * added + x w^T [T, out]; `added` is [out] or [T, out]."""
    matrix = tensors.get(w)
    # Asked only now: the first use of a matrix may be what keeps it, and a layer that is computed twice must go the same way twice.
    if torch.is_grad_enabled() and not tensors.is_kept(w) and (x.requires_grad or (added is not None and added.requires_grad)):
        y: Tensor = _DecodedTwice.apply(tensors, x, w, matrix, added, scale)  # type: ignore[no-untyped-call]
        return y
    return _product(x, matrix, added, scale)


def _product(x: Tensor, matrix: Tensor, added: Tensor | None, scale: float) -> Tensor:
    return x @ matrix.T if added is None else torch.addmm(added, x, matrix.T, beta=scale)


class _DecodedTwice(torch.autograd.Function):
    """Multiplies by a block-quantised matrix, which gets no gradient. What was decoded is not kept for the way back but decoded
    again: else the whole model would lie there decoded."""

    @staticmethod
    def forward(context: Any, tensors: Tensors, x: Tensor, w: Blocks, matrix: Tensor, added: Tensor | None, scale: float) -> Tensor:
        context.of = (tensors, w, scale, None if added is None else added.dim())
        return _product(x, matrix, added, scale)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[None, Tensor | None, None, None, Tensor | None, None]:
        tensors, w, scale, dimensions = context.of
        (gradient,) = gradients
        for_x = gradient @ tensors.get(w) if context.needs_input_grad[1] else None
        for_added = None
        if context.needs_input_grad[4]:
            for_added = scale * (gradient.sum(dim=0) if dimensions == 1 else gradient)
        return None, for_x, None, None, for_added, None
