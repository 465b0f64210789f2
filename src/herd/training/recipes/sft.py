"""Supervised fine-tuning: the loss of a conversation is what its answers' tokens cost, given everything before each.

    loss = - sum weight log p(token | what stands before it) / sum weight          over all tokens of a step that carry loss

The sum runs over the whole step, however it is cut into packs: a step of many short and few long packs weighs every token alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from herd.data.packing import packed_rows
from herd.data.tokenising import Example
from herd.training.recipes.packed import OverExamples, as_tensors
from herd.training.running.loop import Figures
from herd.training.student.batches import Document


@dataclass(kw_only=True)
class Sft(OverExamples[Example]):
    """A recipe for `loop.train`. document: an example as the student takes it; pictures are prepared only now."""

    document: Callable[[Example], Document]

    def step(self, number: int) -> Figures:
        chosen = self.of_step(number)
        total = _weight(chosen)
        cost = self.learn(number, chosen, _size, self._measured, total)["loss"]
        read = sum(_size(example) for example in chosen)
        return {"loss": cost / total, "tokens": sum(example.num_learned for example in chosen), "tokens_read": read}

    def evaluate(self, number: int) -> Figures:
        """What held-out answers cost by token."""
        if not self.held_out:
            return {}
        cost = self.measure(self.held_out, _size, self._measured)["loss"] / _weight(self.held_out)
        return {"loss": cost, "perplexity": math.exp(min(cost, 700.0))}

    def batch(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a step is computed from."""
        return as_tensors(self.of_step(number))

    def packs(self, items: Sequence[Any], size_of: Callable[[Any], int]) -> list[list[Any]]:
        """In whatever order they fit together best: no example's loss depends on another's."""
        return [[items[index] for index in row] for row in packed_rows(range(len(items)), list(map(size_of, items)), self.pack)]

    def _measured(self, examples: list[Example]) -> tuple[Tensor, dict[str, float]]:
        nll, _ = self.student.nll(self.student.batch_of([self.document(example) for example in examples]))
        return nll, {"loss": nll.item()}


def _size(example: Example) -> int:
    return len(example.tokens)


def _weight(examples: Sequence[Example]) -> float:
    return sum(sum(example.weights) for example in examples)
