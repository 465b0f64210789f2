"""Supervised fine-tuning: the loss of a conversation is what its answers' tokens cost, given everything before each.

    loss = - sum weight log p(token | what stands before it) / sum weight          over all tokens of a step that carry loss

The sum runs over the whole step, however it is cut into packs: a step of many short and few long packs weighs every token alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from herd.data.order import index_at
from herd.data.packing import packed_rows
from herd.data.tokenising import Example
from herd.records import dataclass
from herd.training.batches import Document, batch_of
from herd.training.company import ALONE, Company, shared
from herd.training.loop import Figures
from herd.training.student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class Sft:
    """A recipe for `loop.train`.

    documents   an example as the student takes it; pictures are prepared only now
    size        examples of a step
    pack        tokens that are computed together
    company     the processes that share a step's packs
    """

    student: Student
    learned: Sequence[Example]
    held_out: Sequence[Example]
    document: Callable[[Example], Document]
    size: int
    pack: int
    seed: int
    company: Company = ALONE

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return self.student.parameters

    def step(self, number: int) -> Figures:
        chosen = self._examples(number)
        total = sum(sum(example.weights) for example in chosen)
        loss = 0.0
        for part, examples, counts in shared(self.company, list(packs(chosen, self.pack))):
            self.student.begin(number, part)
            nll, _ = self.student.nll(batch_of([self.document(example) for example in examples], self.student.device))
            (nll * counts / total).backward()  # type: ignore[no-untyped-call]
            loss += nll.item() * counts / total
        return {
            "loss": self.company.total(loss),
            "tokens": sum(example.num_learned for example in chosen),
            "tokens_read": sum(len(example.tokens) for example in chosen),
        }

    @torch.no_grad()
    def evaluate(self, number: int) -> Figures:
        """What held-out answers cost by token."""
        if not self.held_out:
            return {}
        self.student.rest()
        total = sum(sum(example.weights) for example in self.held_out)
        cost = 0.0
        for _, examples, counts in shared(self.company, list(packs(self.held_out, self.pack))):
            nll, _ = self.student.nll(batch_of([self.document(example) for example in examples], self.student.device))
            cost += nll.item() * counts
        cost = self.company.total(cost)
        return {"loss": cost / total, "perplexity": math.exp(min(cost / total, 700.0))}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        assert not tensors and not values, "nothing was kept"

    def batch(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a step is computed from."""
        chosen = self._examples(number)
        return (
            {
                "tokens": torch.tensor([token for example in chosen for token in example.tokens]),
                "weights": torch.tensor([weight for example in chosen for weight in example.weights]),
                "lengths": torch.tensor([len(example.tokens) for example in chosen]),
            },
            {"records": [str(example.place) for example in chosen]},
        )

    def _examples(self, number: int) -> list[Example]:
        """Those of a step: the order is another one in each epoch, and depends on the seed and the place in it alone."""
        first = number * self.size
        return [self.learned[index_at(self.seed, len(self.learned), first + offset)] for offset in range(self.size)]


def packs(examples: Sequence[Example], tokens: int) -> Iterator[list[Example]]:
    """Examples in groups of at most so many tokens; one that is longer is by itself."""
    lengths = [len(example.tokens) for example in examples]
    yield from ([examples[index] for index in row] for row in packed_rows(range(len(examples)), lengths, tokens))
