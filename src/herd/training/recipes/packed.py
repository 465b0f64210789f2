"""What recipes have in common whose steps are made of packs: the way through a pack, and how processes share a step's packs.

    items of a step -> packs -> for each of this process: loss -> gradient; figures -> sums over all processes

`OverExamples` are those that learn from a list of examples, so many a step, in an order that the seed and the place in it decide alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from herd.data.order import indices
from herd.data.tokenising import Example
from herd.training.company import ALONE, Company, shared
from herd.training.signals.answers import in_groups
from herd.training.student.model import Student

T = TypeVar("T")
U = TypeVar("U")


@dataclass(kw_only=True)
class InPacks(Generic[T]):
    """A part of a recipe for `loop.train`.

    learned    what steps are made of
    held_out   what evaluations are
    pack       tokens that are computed together
    company    the processes that share a step's packs
    """

    student: Student
    learned: Sequence[T]
    held_out: Sequence[T]
    pack: int
    seed: int
    company: Company = ALONE

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return self.student.parameters

    def packs(self, items: Sequence[U], size_of: Callable[[U], int]) -> list[list[U]]:
        """The items that are computed together."""
        return list(in_groups(items, size_of, self.pack))

    def learn(
        self,
        number: int,
        items: Sequence[U],
        size_of: Callable[[U], int],
        measured: Callable[[list[U]], tuple[Tensor, Mapping[str, float]]],
        whole: float = 1.0,
    ) -> dict[str, float]:
        """The gradient of step `number`, and sums of its figures. `measured`: a pack's loss and figures, each a sum; the loss is
        divided by `whole`, what the whole step has."""
        sums: dict[str, float] = {}
        for place, pack, counts in shared(self.company, self.packs(items, size_of)):
            self.student.begin(number, place)
            loss, figures = measured(pack)
            (loss * counts / whole).backward()  # type: ignore[no-untyped-call]
            _add(sums, figures, counts)
        return self._totals(sums)

    @torch.no_grad()
    def measure(
        self, items: Sequence[U], size_of: Callable[[U], int], measured: Callable[[list[U]], tuple[Any, Mapping[str, float]]]
    ) -> dict[str, float]:
        """The same sums with nothing learned, and nothing drawn at random."""
        self.student.rest()
        sums: dict[str, float] = {}
        for _, pack, counts in shared(self.company, self.packs(items, size_of)):
            _add(sums, measured(pack)[1], counts)
        return self._totals(sums)

    def _totals(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {name: self.company.total(value) for name, value in sums.items()}


@dataclass(kw_only=True)
class OverExamples(InPacks[T]):
    """A part of a recipe for `loop.train`. size: examples of a step."""

    size: int

    def of_step(self, number: int) -> list[T]:
        """The examples of a step."""
        first = number * self.size
        return [self.learned[index] for index in indices(self.seed, len(self.learned), first, first + self.size)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        assert not tensors and not values, "nothing was kept"


def as_tensors(examples: Sequence[Example]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a step is computed from, to be looked at."""
    tensors = {
        "tokens": torch.tensor([token for example in examples for token in example.tokens]),
        "weights": torch.tensor([weight for example in examples for weight in example.weights]),
        "lengths": torch.tensor([len(example.tokens) for example in examples]),
    }
    return tensors, {"records": [str(example.place) for example in examples]}


def _add(sums: dict[str, float], figures: Mapping[str, float], counts: float) -> None:
    for name, value in figures.items():
        sums[name] = sums.get(name, 0.0) + value * counts
