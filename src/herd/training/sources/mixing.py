"""Where the sequences of each step come from: sources, how often each is drawn from, and which of its sequences is next.

Everything is a function of the seed and the step: for every sequence of the run a number is drawn that chooses its source, and how many
of that source came before says which of its sequences it is, in an order that is shuffled anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from herd.errors import UsageError
from herd.training.settings.pretrain import PretrainSettings, StageSettings
from herd.training.sources.corpus import Corpus, documents_of, drawn, shuffled
from herd.training.student.batches import Document


class Sequences(Protocol):
    """A source of sequences."""

    @property
    def name(self) -> str: ...
    def learned(self, position: int, length: int) -> list[Document]:
        """The documents of sequence number `position`, counted over all epochs."""
        ...

    def held_out(self, length: int, tokens: int) -> Iterator[list[Document]]:
        """Sequences that are never learned, of at most so many tokens together."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """Documents of a corpus. `UsageError` when a sequence is longer than all its text."""

    name: str
    text: Corpus
    held: Corpus
    seed: int
    crosses: bool

    def learned(self, position: int, length: int) -> list[Document]:
        count = self.text.num_sequences(length)
        if not count:
            raise UsageError(f"The data {self.name!r} has {self.text.num_tokens:,} tokens, less than one sequence of {length:,}.")
        epoch, place = divmod(position, count)
        index = int(shuffled(self.seed, f"{self.name} {length}", epoch, count)[place])
        return documents_of(self.text.pieces(index, length), crosses=self.crosses)

    def held_out(self, length: int, tokens: int) -> Iterator[list[Document]]:
        for index in range(min(self.held.num_sequences(length), max(1, tokens // length))):
            yield documents_of(self.held.pieces(index, length), crosses=self.crosses)


class Mixture:
    """Which source each sequence of the run is from, and its position there."""

    def __init__(self, sources: Sequence[Sequences], settings: PretrainSettings) -> None:
        self.sources = tuple(sources)
        self.stages = settings.all_stages
        self._batch_tokens = settings.batch_tokens
        self._firsts: list[tuple[int, int]] = []
        weights = {source.name: source.weight for source in settings.data}
        chosen: list[NDArray[np.int64]] = []
        uniform = drawn(settings.loop.seed, "mix", sum(stage.steps * self.per_step(stage) for stage in self.stages))
        step = sequence = 0
        for stage in self.stages:
            self._firsts.append((step, sequence))
            count = stage.steps * self.per_step(stage)
            chosen.append(_chosen(uniform[sequence : sequence + count], self._shares(stage, weights)))
            step, sequence = step + stage.steps, sequence + count
        self._source_of = np.concatenate(chosen)
        self._position_of = self._positions()

    def per_step(self, stage: StageSettings) -> int:
        """Sequences of a step."""
        return max(1, self._batch_tokens // stage.sequence)

    def stage_of(self, step: int) -> int:
        """The number of the stage that a step belongs to; of a step after the last one the last stage."""
        return max(index for index, (first, _) in enumerate(self._firsts) if first <= step)

    def sequences(self, step: int) -> list[tuple[str, list[Document]]]:
        """The documents of each sequence of a step, with the name of its source."""
        index = self.stage_of(step)
        stage, (first_step, first) = self.stages[index], self._firsts[index]
        count = self.per_step(stage)
        begin = first + (step - first_step) * count
        found = []
        for each in range(begin, begin + count):
            source = self.sources[self._source_of[each]]
            found.append((source.name, source.learned(int(self._position_of[each]), stage.sequence)))
        return found

    def _shares(self, stage: StageSettings, weights: Mapping[str, float]) -> NDArray[np.float64]:
        found = np.array([stage.mix.get(source.name, weights[source.name]) for source in self.sources], np.float64)
        if not found.sum():
            raise UsageError("A stage's mix gives every source the weight 0, so there is nothing to draw from.", param="stages.mix")
        shares: NDArray[np.float64] = found / found.sum()
        return shares

    def _positions(self) -> NDArray[np.int64]:
        """How many sequences of the same source came before. Where lengths change, a source goes on after as many tokens."""
        positions = np.zeros(len(self._source_of), np.int64)
        begun = np.zeros(len(self.sources), np.int64)
        for (_, first), stage in zip(self._firsts, self.stages, strict=True):
            last = first + stage.steps * self.per_step(stage)
            for index in range(len(self.sources)):
                here = np.flatnonzero(self._source_of[first:last] == index) + first
                start = -(-int(begun[index]) // stage.sequence)
                positions[here] = start + np.arange(len(here))
                begun[index] = (start + len(here)) * stage.sequence
        return positions


def _chosen(uniform: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    found = np.searchsorted(np.cumsum(shares), uniform, "right")
    return np.minimum(found, len(shares) - 1).astype(np.int64)
