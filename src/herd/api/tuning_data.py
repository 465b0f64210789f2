"""The records that a run learns from, as examples of its model: one way for every recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from herd.api.tuning import Opened
from herd.data.account import Account
from herd.data.order import split
from herd.data.preparing import prepared
from herd.data.samples import Sample
from herd.data.shapes import read_samples
from herd.data.tokenising import Example
from herd.errors import UsageError
from herd.training.settings.tuning import TuningSettings

S = TypeVar("S", bound=Sample)
T = TypeVar("T")


def read(
    opened: Opened,
    data: Sequence[str],
    account: Account,
    taken: Callable[[Sample], S | None],
    expected: str,
    *,
    max_tokens: int,
    too_long: str = "drop",
    learn: str = "answers",
    shape: str | None = None,
) -> Iterator[tuple[S, tuple[Example, ...]]]:
    """Each record with its examples, those that fall out left out and counted.

    taken      what the recipe makes of a record; None: it learns nothing from such
    expected   what it learns from instead, for the message

    `UsageError` for records that are not taken; `FileProblem` if nothing is left.
    """
    tokenising, longest = opened.tokenising(learn), min(max_tokens, opened.cfg.context_length)
    for sample in read_samples(data, account, shape=shape):
        found = taken(sample)
        if found is None:
            raise UsageError(f"{sample.place}: is a record of the shape {account.shape}; {expected}")
        for examples in prepared([found], tokenising, account, max_tokens=longest, too_long=too_long):
            yield found, examples
    account.require_kept()


def only(kind: type[S]) -> Callable[[Sample], S | None]:
    """Takes records of this kind."""
    return lambda sample: sample if isinstance(sample, kind) else None


def parted(items: Sequence[T], settings: TuningSettings) -> tuple[list[T], list[T]]:
    """(what is learned, what is held out)."""
    wanted = settings.held_out if settings.held_out < 1 else int(settings.held_out)
    learned, others = split(len(items), wanted, settings.loop.seed)
    return [items[index] for index in learned], [items[index] for index in others]
