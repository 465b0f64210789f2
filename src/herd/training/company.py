"""Processes that train one model together, as a recipe and the loop see them. Alone is the company of one; `parallel.py` has others.

What belongs to a step is the same for every process, as data order is a pure function; each computes its part of it. Gradients and
figures are *sums* over processes: a recipe divides by what the whole step has, which every process can count without asking.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from herd.errors import UsageError
from herd.records import dataclass
from herd.training import gradients

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is the first of the processes that torchrun has started, or the only one."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or int(os.environ.get("RANK", "0")) == 0


class Company(Protocol):
    """`index` of this process among `count`. They share a step's work in `parts`, of which this process does number `part`: as many as
    processes, or fewer where some of them hold one model together and do the same part."""

    @property
    def index(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def part(self) -> int: ...

    @property
    def parts(self) -> int: ...

    def total(self, value: float) -> float:
        """The sum of what is given for each part. Every process has to call it at the same place."""
        ...

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sums of what is given for each part, place by place, without gradients."""
        ...

    def all_agree(self, is_so: bool) -> bool:
        """Whether it is so for every process. Waits for all."""
        ...

    def exchanged(self, value: Any) -> list[Any]:
        """What is given for each part, in their order: what JSON can say, tuples as lists. Every process has to call it at the same place.
        When JSON cannot say what one of them has, that one raises what `json.dumps` does, and the others `UsageError`."""
        ...

    def first_is_done(self, is_so: bool) -> None:
        """In the first process: work that it alone does is done, or has failed; the others hear it from `wait_for_first`."""
        ...

    def wait_for_first(self) -> bool:
        """In the others: whether the first process did its work. Waits as long as that lives; `UsageError` when it does not."""
        ...

    def sum_gradients(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """After a step's gradients are made: sums over processes of those that are not summed already."""
        ...

    def norm(self, parameters: Mapping[str, torch.nn.Parameter]) -> float:
        """The norm of all gradients as one vector, the parts of other processes included."""
        ...

    def kept(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Which of these this process writes into a checkpoint: its own rows of what is divided; the first also what is whole."""
        ...

    def placed(self, tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.Tensor]:
        """Tensors of a checkpoint, divided as the parameter that they are of, or of which they are a moment ("NAME.first")."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """One process."""

    index: int = 0
    count: int = 1

    @property
    def part(self) -> int:
        return self.index

    @property
    def parts(self) -> int:
        return self.count

    def total(self, value: float) -> float:
        return value

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def all_agree(self, is_so: bool) -> bool:
        return is_so

    def exchanged(self, value: Any) -> list[Any]:
        return [value]

    def first_is_done(self, is_so: bool) -> None:
        pass

    def wait_for_first(self) -> bool:
        return True

    def sum_gradients(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        pass

    def norm(self, parameters: Mapping[str, torch.nn.Parameter]) -> float:
        return gradients.norm(parameters)

    def kept(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return tensors

    def placed(self, tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.Tensor]:
        return tensors


ALONE = Alone()


def shared(company: Company, items: Sequence[T]) -> Iterator[tuple[int, T, float]]:
    """This process's part of a step's items: (place among all, item, what it counts).

    Every part gets equally many, as what is computed together has to be called equally often: where they do not divide, an item that
    is another's is computed as well and counts 0. Alone, this is all of them with 1.
    """
    rounds = -(-len(items) // company.parts)
    for number in range(rounds):
        place = number * company.parts + company.part
        yield (place, items[place], 1.0) if place < len(items) else (place, items[place % len(items)], 0.0)


def apart(company: Company, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[Any]]) -> list[Any]:
    """What `work` makes of all items, in their order: each process works on its part and has the others' results, which JSON has to be able
    to say (tuples may come back as lists). For what nobody has to wait for inside; alone, this is `work(items)`."""
    found = company.exchanged(work(items[company.part :: company.parts]))
    return [found[place % company.parts][place // company.parts] for place in range(len(items))]


def by_the_first(company: Company, work: Callable[[], T], what: str) -> T | None:
    """What `work` gives in the first process, which alone does it; the others wait for as long as it takes, and have None. `UsageError` in
    these if it failed."""
    if company.index > 0:
        if not company.wait_for_first():
            raise UsageError(f"{what}: the first process could not do it; see what it says.")
        return None
    try:
        found = work()
    except BaseException:
        company.first_is_done(False)
        raise
    company.first_is_done(True)
    return found
