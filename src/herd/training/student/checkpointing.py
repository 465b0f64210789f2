"""Layers that are computed a second time on the way back, so that only their inputs lie in memory in between.

A third more arithmetic for the least memory. What a layer draws at random must come from generators made from keys, as
`lora.py` does: then the second time is the same as the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor


def recomputed(layer: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`layer` of its arguments, for `models.ops.Step.run`."""
    if not torch.is_grad_enabled():
        return layer(*arguments)
    y: Tensor = torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)
    return y
