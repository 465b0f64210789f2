"""Where the sequences of each step come from: sources, how often each is drawn from, and which of its sequences is next.

Everything is a function of the seed and the step: `data.mixing` says which source a sequence of the run is from, so that each has its
share in every block of sequences, and how many of that source came before says which of its sequences it is, in an order that is
shuffled anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from herd.data.mixing import Mixing, Stage
from herd.errors import UsageError
from herd.training.settings.pretrain import PretrainSettings, StageSettings
from herd.training.sources.corpus import Corpus, documents_of, shuffled
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
    """Which source each sequence of the run is from, and its position there: a `Mixing` whose stages are those of the run."""

    def __init__(self, sources: Sequence[Sequences], settings: PretrainSettings) -> None:
        self.sources = tuple(sources)
        self.stages = settings.all_stages
        self._batch_tokens = settings.batch_tokens
        own = {source.name: source.weight for source in settings.data}
        counts = [stage.steps * self.per_step(stage) for stage in self.stages]
        self._firsts = list(accumulate(zip((stage.steps for stage in self.stages), counts, strict=True), _added, initial=(0, 0)))[:-1]
        weights = [self._weights(stage, own) for stage in self.stages]
        mixed = [Stage(count, each) for count, each in zip(counts, weights, strict=True)]
        self._mixing = Mixing([*mixed[:-1], Stage(None, weights[-1])], settings.loop.seed)
        self._begins = self._places()

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
            number, position = self._mixing.at(each)
            source = self.sources[number]
            found.append((source.name, source.learned(self._begins[index][number] + position, stage.sequence)))
        return found

    def _weights(self, stage: StageSettings, own: Mapping[str, float]) -> tuple[float, ...]:
        found = tuple(stage.mix.get(source.name, own[source.name]) for source in self.sources)
        if not any(found):
            raise UsageError("A stage's mix gives every source the weight 0, so there is nothing to draw from.", param="stages.mix")
        return found

    def _places(self) -> list[list[int]]:
        """For each stage what has to be added to a source's count of sequences so far. Where lengths change, a source goes on after as
        many tokens as it has had."""
        found, tokens = [], [0] * len(self.sources)
        befores = [self._mixing.before(index) for index in range(len(self.stages))]
        for index, stage in enumerate(self.stages):
            starts = [-(-had // stage.sequence) for had in tokens]
            found.append([start - count for start, count in zip(starts, befores[index], strict=True)])
            for end in befores[index + 1 : index + 2]:
                places = zip(starts, befores[index], end, strict=True)
                tokens = [(start + after - before) * stage.sequence for start, before, after in places]
        return found


def _added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
