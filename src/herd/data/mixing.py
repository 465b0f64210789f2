"""Several sources in one stream, each with its share, in stages: which source comes at a position, and which of its examples.

    mix = Mixing([Stage(1000, (0.8, 0.2)), Stage(None, (0.5, 0.5))], seed=0)
    mix.at(5)        (source 0, that source's position 4)

A pure function of the position, like `order.py`: in every block of positions each source has its share to within one example, in an
order that is the block's own, and a source's positions are counted through all stages without a gap. What stands at a source's
position is for `order.index_at` to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from herd.data.order import permuted
from herd.errors import UsageError
from herd.records import dataclass

_BLOCK, _MOST = 256, 1 << 18
"""Examples of a block, of which the rarest source has two at least, and the most that a block may have."""


@dataclass(frozen=True, slots=True)
class Stage:
    """count: how many positions the stage has; None: all that follow. weights: of each source; only their ratio counts."""

    count: int | None
    weights: tuple[float, ...]


class Mixing:
    """A stream over several sources."""

    def __init__(self, stages: Sequence[Stage], seed: int) -> None:
        """`UsageError` for stages that contradict each other, weights that are no shares, or an end before the last stage."""
        _check(stages)
        self._seed = seed
        self._stages: list[tuple[int, tuple[int, ...], _Shares]] = []  # (first position, examples of each source before it, shares)
        begin, used = 0, (0,) * len(stages[0].weights)
        for stage in stages:
            shares = _Shares(stage.weights)
            self._stages.append((begin, used, shares))
            if stage.count is not None:
                begin += stage.count
                used = tuple(before + more for before, more in zip(used, shares.counts(stage.count), strict=True))
        self._kept: tuple[tuple[int, int], list[tuple[int, int]]] | None = None

    def at(self, position: int) -> tuple[int, int]:
        """(source, how many of that source came before)."""
        number = max(at for at, (begin, _, _) in enumerate(self._stages) if begin <= position)
        begin, used, shares = self._stages[number]
        block, offset = divmod(position - begin, shares.block)
        if self._kept is None or self._kept[0] != (number, block):
            end = self._stages[number + 1][0] - begin if number + 1 < len(self._stages) else None
            self._kept = (number, block), self._block(number, block, end)
        source, rank = self._kept[1][offset]
        return source, used[source] + rank

    def before(self, stage: int) -> tuple[int, ...]:
        """How many of each source come before a stage begins."""
        return self._stages[stage][1]

    def _block(self, number: int, block: int, end: int | None) -> list[tuple[int, int]]:
        """(source, its position in the stage) at each position of a block; the last one of a stage may be shorter."""
        shares = self._stages[number][2]
        first = block * shares.block
        size = shares.block if end is None else min(shares.block, end - first)
        before, after = shares.counts(first), shares.counts(first + size)
        sources = [source for source in range(len(before)) for _ in range(after[source] - before[source])]
        order = [sources[permuted(at, size, self._seed, number, block)] for at in range(size)]
        ranks = list(before)
        placed = []
        for source in order:
            placed.append((source, ranks[source]))
            ranks[source] += 1
        return placed


class _Shares:
    """How many of the first n examples each source has: what its share of n rounds to, so that the numbers always add up to n."""

    def __init__(self, weights: Sequence[float]) -> None:
        total = math.fsum(weights)
        self._ends = [math.fsum(weights[: at + 1]) / total for at in range(len(weights))]
        self._ends[-1] = 1.0
        smallest = min(weight for weight in weights if weight > 0) / total
        self.block = max(_BLOCK, math.ceil(4 / smallest))  # of every source at least two, so that counts never go back

    def counts(self, size: int) -> list[int]:
        ends = [round(size * end) for end in self._ends]
        return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _check(stages: Sequence[Stage]) -> None:
    if not stages:
        raise UsageError("a mix has no stage; expected one at least.")
    for at, stage in enumerate(stages):
        if len(stage.weights) != len(stages[0].weights) or not stage.weights:
            raise UsageError(
                f"stage {at} of the mix has {len(stage.weights)} weights and the first {len(stages[0].weights)}; one a source."
            )
        if not all(math.isfinite(weight) and weight >= 0 for weight in stage.weights) or not any(stage.weights):
            raise UsageError(f"stage {at} of the mix has the weights {stage.weights}; expected numbers that are not negative, one above 0.")
        share = min(weight for weight in stage.weights if weight) / math.fsum(stage.weights)
        if share < 4 / _MOST:
            raise UsageError(f"stage {at} of the mix gives a source {share:.2g} of all examples; expected {4 / _MOST:.2g} or more, or 0.")
        if (stage.count is None) != (at == len(stages) - 1) or (stage.count is not None and stage.count < 1):
            raise UsageError(f"stage {at} of the mix has {stage.count} examples; every stage but the last has a number, and the last none.")
