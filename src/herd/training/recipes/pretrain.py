"""Pretraining: all weights of a model learn to continue text, and pictures where it has some.

    for each step   sequences of the mix -> packed documents -> hidden rows -> - log p(next token) [+ z-loss] [+ what a teacher says]
                    experts are kept equally busy; stages change the mix, the length and the rotary frequencies

What is averaged over is every token of the step that has something before it. Of several processes each computes some documents of every
part, and counts of experts are those of all, so what a step comes to does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from herd.models.llama4 import Llama4Config
from herd.models.rope import Rope
from herd.training.company import ALONE, Company, shared
from herd.training.recipes.co_distillation import Blend, Teacher, blended, share_at
from herd.training.settings.pretrain import PretrainSettings
from herd.training.sources.mixing import Mixture
from herd.training.student.balancing import Balance, BalancedOps
from herd.training.student.batches import Batch, Document
from herd.training.student.checkpointing import recomputed
from herd.training.student.model import Student


class Pretraining:
    """The recipe (`loop.Recipe`)."""

    def __init__(
        self, student: Student, mixture: Mixture, settings: PretrainSettings, teacher: Teacher | None = None, company: Company = ALONE
    ) -> None:
        self._student = student
        self._mixture = mixture
        self._settings = settings
        self._teacher = teacher
        self._company = company
        cfg: Any = student.cfg
        self._rope: Rope = cfg.rope
        num_experts = cfg.num_experts if isinstance(cfg, Llama4Config) else 0
        steps = settings.loop.schedule.steps
        self._balance = Balance(settings.balancing, student.weights, num_experts, steps, student.device, company.summed)
        if num_experts:
            student.ops = BalancedOps(student.tensors, student.adapters, self._balance, student.sharing)
        if settings.recompute:
            student.run = recomputed
        self._stage = -1
        self._enter(0)

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return self._student.parameters

    def step(self, number: int) -> dict[str, float]:
        self._enter(number)
        documents = [document for _, each in self._mixture.sequences(number) for document in each]
        total = sum(weight != 0 for document in documents for weight in document.weights)
        tokens = sum(len(document.tokens) for document in documents)
        self._balance.begin(number)
        weight = self._balance.loss_weight
        sums: dict[str, float] = {}
        for part in self._parts(documents):
            (_, mine, counts), *_ = shared(self._company, _apart(part, self._company.parts))
            batch = self._student.batch_of(mine)
            self._balance.of_part(weight, counts, sum(len(document.tokens) for document in part), tokens)
            self._balance.is_learning = self._balance.is_counting = True
            loss, figures = self._loss(batch, number)
            self._balance.is_counting = False
            (loss * counts / total).backward()  # type: ignore[no-untyped-call]
            self._balance.is_learning = False
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value * counts
        sums = {name: self._company.total(value) for name, value in sums.items()}
        self._balance.loss_weight = weight
        return {"tokens": float(total), **{name: value / total for name, value in sums.items()}, **self._balance.end(number)}

    @torch.no_grad()
    def evaluate(self, number: int) -> dict[str, float]:
        """The loss of the next token on what each source holds out, and over all of them. Nothing but the model takes part: no biases of
        experts, no teacher."""
        self._enter(max(0, number - 1))
        length = self._mixture.stages[self._stage].sequence
        found: dict[str, float] = {}
        losses, counts = 0.0, 0
        for source in self._mixture.sources:
            loss, count = 0.0, 0
            for _, documents, share in shared(self._company, list(source.held_out(length, self._settings.eval_tokens))):
                batch = self._student.batch_of(documents)
                loss -= float(self._student.nll(batch)[1].logprobs_R.double().sum()) * share
                count += batch.num_targets * int(share)
            loss, count = self._company.total(loss), int(self._company.total(count))
            if count:
                found[f"loss.{source.name}"] = loss / count
                losses, counts = losses + loss, counts + count
        return {"loss": losses / counts, "tokens": float(counts), **(found if len(found) > 1 else {})} if counts else {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self._balance.state(), {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._balance.restore(tensors)

    def batch(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a step is computed from, to be looked at."""
        sequences = self._mixture.sequences(number)
        documents = [document for _, each in sequences for document in each]
        tokens = torch.tensor([token for document in documents for token in document.tokens])
        return {"tokens": tokens}, {"lengths": [len(document.tokens) for document in documents], "sources": [name for name, _ in sequences]}

    def _loss(self, batch: Batch, number: int) -> tuple[Tensor, dict[str, float]]:
        """The sum over a batch's tokens, and figures as sums."""
        z_loss = self._settings.z_loss
        if self._teacher is None:
            loss, extras = self._student.nll(batch, z_loss)
            figures = {"loss": -float(extras.logprobs_R.double().sum())}
            return loss, figures | ({"z": float(extras.lse_R.double().square().sum())} if z_loss else {})
        blend = self._student.within(lambda: self._blend(batch, number))
        figures = {"loss": float(blend.hard), "soft": float(blend.soft), "soft_share": float(blend.share)}
        return blend.loss, figures | ({"z": float(blend.z)} if z_loss else {})

    def _blend(self, batch: Batch, number: int) -> Blend:
        assert self._teacher is not None, "only asked for with one"
        settings = self._settings.teacher
        hidden = self._student.hidden(batch)
        head = self._student.tensors.get(self._student.weights.head)
        share = share_at(settings, number, self._settings.loop.schedule.steps)
        return blended(hidden, head, self._teacher, self._teacher.hidden(batch), batch, share, settings, self._settings.z_loss)

    def _parts(self, documents: Sequence[Document]) -> Iterator[list[Document]]:
        """What is computed at once."""
        most = self._settings.micro_tokens
        part: list[Document] = []
        size = 0
        for document in documents:
            if part and most and size + len(document.tokens) > most:
                yield part
                part, size = [], 0
            part.append(document)
            size += len(document.tokens)
        yield part

    def _enter(self, step: int) -> None:
        """The stage of a step: its rotary frequencies, and the context that the model is made for from here on."""
        index = self._mixture.stage_of(step)
        if index == self._stage:
            return
        self._stage = index
        rope = self._mixture.stages[index].rope.of(self._rope)
        cfg: Any = self._student.cfg
        self._student.cfg = replace(cfg, rope=rope)


def _apart(documents: Sequence[Document], count: int) -> list[list[Document]]:
    """Documents in at most `count` runs of about equally many tokens, none empty."""
    whole = sum(len(document.tokens) for document in documents)
    runs: list[list[Document]] = [[] for _ in range(count)]
    begin = 0
    for document in documents:
        runs[(2 * begin + len(document.tokens)) * count // (2 * whole)].append(document)
        begin += len(document.tokens)
    return [run for run in runs if run]
