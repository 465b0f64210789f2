"""Preference optimisation: DPO (with the NLL term and the masking of Llama 3), SimPO and ORPO from pairs, KTO from single answers.

    pair -> two documents in one pass -> log π of both answers -> loss of the pair            mean over the pairs of a step
    for DPO and KTO the same of the model as it was (with LoRA: without the updates), in a pass of its own

Formulas are in `losses.py`. Figures: "accuracy" is the share of pairs whose chosen answer is ahead (for DPO: gained more than the
rejected one since the start), "margin" by how much, times beta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from herd.data.tokenising import Example
from herd.errors import UsageError
from herd.training.recipes.packed import OverExamples, as_tensors
from herd.training.running.loop import Figures
from herd.training.settings.preferences import PreferenceLoss
from herd.training.signals import losses
from herd.training.signals.answers import behind, counts, sums, without_formatting
from herd.training.student.batches import Document, batch_of
from herd.training.student.model import Student


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, the better one first. margin: by how much it has to be ahead."""

    chosen: Example
    rejected: Example
    margin: float = 0.0

    @property
    def num_tokens(self) -> int:
        return len(self.chosen.tokens) + len(self.rejected.tokens)


@dataclass(frozen=True, slots=True)
class Judgement:
    """An answer, and whether it is a good one."""

    example: Example
    is_good: bool

    @property
    def num_tokens(self) -> int:
        return len(self.example.tokens)


class Reference:
    """log π_ref of answers: of the model as it was."""

    def __init__(self, student: Student, frozen: Student | None = None) -> None:
        """`frozen`: the model as it was, where all weights are learned."""
        if frozen is None and student.lora is None:
            raise UsageError("All weights are learned, so the model as it was is not in here; give it as a second student.")
        self._student, self._frozen = student, frozen

    def __call__(self, documents: Sequence[Document]) -> list[float]:
        """log π_ref of each document, computed in one pass: what a step needs depends on nothing that was computed before."""
        with torch.no_grad(), self.policy() as student:
            batch = batch_of(documents, student.device)
            found: list[float] = sums(student.logprobs(batch), batch).tolist()
            return found

    @contextmanager
    def policy(self) -> Iterator[Student]:
        """The model as it was, at rest."""
        if self._frozen is not None:
            yield self._frozen
        else:
            self._student.rest()
            with self._student.without_adapters():
                yield self._student


@dataclass(kw_only=True)
class Preferences(OverExamples[Any]):
    """A recipe for `loop.train`, over pairs or (KTO) judgements.

    document    an example as the student takes it
    reference   of DPO and KTO
    """

    document: Callable[[Example], Document]
    loss: PreferenceLoss
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if self.loss.needs_reference and self.reference is None:
            self.reference = Reference(self.student)

    def step(self, number: int) -> Figures:
        chosen = self.of_step(number)
        kl = self._kl(chosen) if self.loss.method == "kto" else None
        total = self.learn(number, chosen, _size, lambda items: self._measured(items, kl), len(chosen))
        return self._figures(total, len(chosen), kl)

    def evaluate(self, number: int) -> Figures:
        if not self.held_out:
            return {}
        kl = self._kl(self.held_out) if self.loss.method == "kto" else None
        total = self.measure(self.held_out, _size, lambda items: self._measured(items, kl))
        return self._figures(total, len(self.held_out), kl)

    def batch(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a step is computed from."""
        return as_tensors([example for item in self.of_step(number) for example in _examples(item)])

    def _document(self, example: Example) -> Document:
        return self.document(example if self.loss.formatting else without_formatting(example))

    def _measured(self, items: Sequence[Any], kl: Tensor | None) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses of some items, and sums of their figures."""
        documents = [self._document(example) for item in items for example in _examples(item)]
        batch = batch_of(documents, self.student.device)
        logprobs_N = sums(self.student.logprobs(batch), batch)
        count_N = counts(batch).to(logprobs_N.dtype)
        if self.loss.needs_reference:
            assert self.reference is not None
            before_N = logprobs_N.new_tensor(self.reference(documents))
        else:
            before_N = torch.zeros_like(logprobs_N)
        if kl is not None:
            is_good_N = torch.tensor([item.is_good for item in items], device=logprobs_N.device)
            return self._judged(logprobs_N - before_N, is_good_N, kl, count_N)
        return self._compared(logprobs_N, before_N, count_N, logprobs_N.new_tensor([item.margin for item in items]))

    def _compared(self, logprobs_N: Tensor, before_N: Tensor, count_N: Tensor, margin_P: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Pairs: documents 0, 2, 4, ... are the chosen ones."""
        loss, beta = self.loss, self.loss.strength
        chosen_P, rejected_P = (logprobs_N - before_N)[0::2], (logprobs_N - before_N)[1::2]
        means_N = logprobs_N / count_N
        match loss.method:
            case "dpo":
                ahead_P = beta * (chosen_P - rejected_P)
                value_P = losses.dpo(chosen_P, rejected_P, beta, loss.label_smoothing, margin_P)
                if loss.nll:
                    value_P = value_P + loss.nll * losses.dpo_nll(logprobs_N[0::2], count_N[0::2])
            case "simpo":
                ahead_P = beta * (means_N[0::2] - means_N[1::2])
                value_P = losses.simpo(means_N[0::2], means_N[1::2], beta, loss.gamma, loss.label_smoothing)
            case _:
                ahead_P = means_N[0::2] - means_N[1::2]
                value_P = beta * losses.orpo(means_N[0::2], means_N[1::2]) - means_N[0::2]
        figures = {
            "loss": value_P.sum(),
            "accuracy": (ahead_P > 0).sum(),
            "margin": ahead_P.sum(),
            "chosen": chosen_P.sum(),
            "rejected": rejected_P.sum(),
            "nll": -means_N[0::2].sum(),
        }
        return value_P.sum(), {name: float(value.detach()) for name, value in figures.items()} | {"tokens": float(count_N.sum())}

    def _judged(self, ratio_N: Tensor, is_good_N: Tensor, kl: Tensor, count_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss = self.loss
        value_N = losses.kto(ratio_N, is_good_N, kl, loss.strength, loss.desirable, loss.undesirable)
        ahead_N = torch.where(is_good_N, ratio_N - kl, kl - ratio_N)
        figures = {
            "loss": float(value_N.detach().sum()),
            "accuracy": float((ahead_N > 0).sum()),
            "margin": float(loss.strength * ahead_N.detach().sum()),
            "tokens": float(count_N.sum()),
        }
        return value_N.sum(), figures

    def _kl(self, items: Sequence[Judgement]) -> Tensor:
        """KTO's point of reference: each prompt with the answer to the one before it."""
        documents = [self._document(item.example) for item in items]
        crossed = [behind(prompt, documents[at - 1]) for at, prompt in enumerate(documents)]

        def measured(pack: list[Document]) -> tuple[None, dict[str, float]]:
            assert self.reference is not None
            batch = batch_of(pack, self.student.device)
            now_N = sums(self.student.logprobs(batch), batch)
            return None, {"kl": float((now_N - now_N.new_tensor(self.reference(pack))).sum())}

        total = self.measure(crossed, lambda each: len(each.tokens), measured)["kl"]
        return losses.kto_kl(torch.tensor([total / len(crossed)], dtype=self.student.tensors.wide, device=self.student.device))

    def _figures(self, total: Mapping[str, float], count: int, kl: Tensor | None) -> Figures:
        found = {name: value if name == "tokens" else value / count for name, value in total.items()}
        return found if kl is None else found | {"kl": float(kl)}


def _examples(item: Pair | Judgement) -> tuple[Example, ...]:
    return (item.chosen, item.rejected) if isinstance(item, Pair) else (item.example,)


def _size(item: Pair | Judgement) -> int:
    return item.num_tokens
