"""Small tensors of known numbers, made once and kept: a captured CUDA graph may not copy from the host."""

from __future__ import annotations

import torch
from torch import Tensor

_MADE: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}


def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor [len(values)] on `device`. Not to be written to."""
    key = (values, dtype, device)
    if key not in _MADE:
        _MADE[key] = torch.tensor(values, dtype=dtype, device=device)
    return _MADE[key]
