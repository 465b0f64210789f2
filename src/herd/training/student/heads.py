"""What stands between a model's last rows and its logits, found by asking the model: which matrix, and whether logits are capped.

A model says how its logits are made by calling operations; here they are listened to. `cross_entropy.py` can then make logits
in chunks of its own. A model that does anything else with its last rows gives None, and its logits are made by its own function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from herd.models.architecture import Architecture, Config
from herd.models.ops import Step
from herd.models.weights import Adapted, Blocks, Dense, Matrix, Vector
from herd.training.student.cross_entropy import Cap


@dataclass(frozen=True, slots=True)
class Head:
    """logits = cap(x matrix^T)."""

    matrix: Dense | Blocks
    cap: Cap | None


def head_of(model: Architecture, weights: Any, cfg: Config) -> Head | None:
    """The head of a model; None if it is more than a matrix and a cap."""
    listener: Any = _Listener()
    try:
        model.logits(None, weights, cfg, Step(listener, None, None, None, ()))
    except AttributeError:
        return None  # an operation that is none of these
    if listener.is_more or listener.matrix is None or isinstance(listener.matrix, Adapted):
        return None
    return Head(listener.matrix, listener.cap)


class _Listener:
    """Operations that do nothing but remember what they were asked for."""

    def __init__(self) -> None:
        self.matrix: Matrix | None = None
        self.cap: Cap | None = None
        self.is_more = False

    def linear(self, x: Any, w: Matrix, bias: Vector | None = None) -> Any:
        self.is_more |= self.matrix is not None or self.cap is not None or bias is not None
        self.matrix = w
        return x

    def soft_cap(self, x: Any, factor: float, cap: float) -> Any:
        self.is_more |= self.matrix is None or self.cap is not None
        self.cap = Cap(factor, cap)
        return x

    def tap(self, name: str, x: Any) -> Any:
        return x
