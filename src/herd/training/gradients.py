"""How long a gradient is over all parameters, and shortening it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_TINY = 1e-6


def norm(parameters: Mapping[str, torch.nn.Parameter]) -> float:
    """The norm of all gradients as one vector; sums in 32 bits or more. NaN or infinite if one of them is."""
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    if not gradients:
        return 0.0
    norms = [torch.linalg.vector_norm(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in gradients]
    return float(torch.linalg.vector_norm(torch.stack([each.to(norms[0]) for each in norms])))


def clip(parameters: Mapping[str, torch.nn.Parameter], length: float, longest: float) -> None:
    """Shortens gradients of norm `length` to `longest`, if they are longer; 0 leaves them. As `torch.nn.utils.clip_grad_norm_` counts."""
    share = longest / (length + _TINY)
    if longest == 0 or not math.isfinite(length) or share >= 1:
        return
    for parameter in parameters.values():
        if parameter.grad is not None:
            parameter.grad.mul_(share)


def clear(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Takes all gradients away."""
    for parameter in parameters.values():
        parameter.grad = None


def names_of_bad(parameters: Mapping[str, torch.nn.Parameter]) -> list[str]:
    """The parameters whose gradient has a value that is no finite number."""
    return [name for name, each in parameters.items() if each.grad is not None and not _is_finite(each.grad)]


def _is_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())
