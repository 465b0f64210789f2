"""What low-rank updates are like. Free of torch, so that settings are read quickly."""

from __future__ import annotations

import math

from herd.records import dataclass
from herd.training.settings.reading import need

MAX_RANK = 1 << 14


@dataclass(frozen=True, slots=True)
class Lora:
    """What is learned instead of the weights themselves.

    rank        columns of each update
    alpha       the update is multiplied by alpha / rank
    targets     matrices that get one, by the ends of their names ("q", "attention.q", "ffn.up"); "all": every matrix of the layers
                of the text model
    stabilised  rsLoRA: multiply by alpha / sqrt(rank) instead, so that large ranks learn too
    dora        DoRA: learn the length of each row as well
    dropout     the share of inputs to each update that is left out in a step, at random
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("all",)
    stabilised: bool = False
    dora: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        need(1 <= self.rank <= MAX_RANK, "lora.rank", self.rank, f"a whole number from 1 to {MAX_RANK}")
        need(math.isfinite(self.alpha) and self.alpha > 0, "lora.alpha", self.alpha, "a number above 0")
        need(0 <= self.dropout < 1, "lora.dropout", self.dropout, "a number from 0 to below 1")
        need(len(self.targets) > 0, "lora.targets", self.targets, 'ends of names of matrices, or "all"')

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)
