"""How the weights of a new model begin. Free of torch."""

from __future__ import annotations

from herd.records import dataclass
from herd.training.settings.reading import need


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialSettings:
    """How weights begin.

    std        standard deviation of matrices and tables
    by_depth   whether matrices whose result is added to the stream begin smaller, by the root of twice the number of layers
    """

    std: float = 0.02
    by_depth: bool = False

    def __post_init__(self) -> None:
        need(0 < self.std < 1, "std", self.std, "a number between 0 and 1")
