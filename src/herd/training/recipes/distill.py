"""Distillation: a student learns what a teacher thinks could come next, not only what did.

    off-policy   the teacher read a data set once and its likeliest tokens were kept (`teacher_file.py`):
                     loss = w · divergence(teacher, student) + (1 - w) · nll          w goes from `start` to `end` over the run
    on-policy    the student answers prompts, and the teacher says of each token of the answer what it thinks of it:
                     loss = reverse KL(student, teacher), over the whole vocabulary or the teacher's k likeliest tokens (GKD, MiniLLM)

Both need the same vocabulary. Divergences, and what becomes of the tokens that were not kept: `divergences.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from herd.engine.engine import Engine
from herd.errors import UsageError
from herd.training.company import apart
from herd.training.recipes.packed import OverExamples
from herd.training.running.loop import Figures
from herd.training.settings.distill import SoftTargets
from herd.training.signals.divergences import SoftWeight, divergence, grouped, most_likely
from herd.training.signals.rollouts import Drawn, Gap, Prompt, Sampler, behind_prompt, seed_of, seeds_of
from herd.training.signals.teacher_file import Taught, weights_of
from herd.training.student.batches import Batch, Document, batch_of
from herd.training.student.model import Student

CHUNK_ROWS = 256


class Teacher(Protocol):
    """Says what comes next."""

    @property
    def vocabulary(self) -> int: ...

    def logits(self, document: Document) -> Tensor:
        """[R, V] float32 for the tokens of a document that carry loss."""
        ...


class EngineTeacher:
    """A teacher that an engine runs, on any backend."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def vocabulary(self) -> int:
        return self._engine.backend.vocab_size

    def logits(self, document: Document) -> Tensor:
        wanted = [at - 1 for at, weight in enumerate(document.weights) if weight]
        rows = np.concatenate(list(self._engine.score(document.tokens[: wanted[-1] + 1], pictures=document.pictures)))
        return torch.from_numpy(rows[wanted])


def taught(teacher: Teacher, documents: Sequence[Document], k: int, temperature: float = 1.0) -> Iterator[Taught]:
    """What a teacher says of documents, one after another, for `TeacherWriter`."""
    for document in documents:
        ids_RK, logprobs_RK1 = most_likely(teacher.logits(document).to(torch.float64), k, temperature)
        yield Taught(document, ids_RK, logprobs_RK1.to(torch.float32))


@dataclass(kw_only=True)
class Distillation(OverExamples[Taught]):
    """Off-policy: a recipe for `loop.train`. steps: how long the run is, for the weight of soft targets."""

    targets: SoftTargets
    temperature: float
    steps: int

    @property
    def weight(self) -> SoftWeight:
        return SoftWeight(start=self.targets.start, end=self.targets.end, shape=self.targets.shape)

    def step(self, number: int) -> Figures:
        chosen = self.of_step(number)
        soft, total = self.weight.at(number, self.steps), weights_of([each.document for each in chosen])

        def measured(group: list[Taught]) -> tuple[Tensor, dict[str, float]]:
            far, nll = self._measured(group)
            loss = soft * far + (1 - soft) * nll if soft else nll  # what counts nothing need not be gone back through
            return loss, {"loss": float(loss.detach()), "divergence": float(far.detach()), "nll": float(nll.detach())}

        sums = self.learn(number, chosen, _size, measured, total)
        tokens = sum(len(each.ids_RK) for each in chosen)
        return {**{name: value / total for name, value in sums.items()}, "tokens": float(tokens), "soft": soft}

    def evaluate(self, number: int) -> Figures:
        """What held-out tokens cost the student ("loss": the true tokens alone), and how far it is from the teacher on them."""
        if not self.held_out:
            return {}

        def measured(group: list[Taught]) -> tuple[None, dict[str, float]]:
            far, nll = self._measured(group)
            return None, {"loss": float(nll), "divergence": float(far)}

        total = weights_of([each.document for each in self.held_out])
        found = {name: value / total for name, value in self.measure(self.held_out, _size, measured).items()}
        return {**found, "perplexity": math.exp(min(found["loss"], 700.0))}

    def _measured(self, group: Sequence[Taught]) -> tuple[Tensor, Tensor]:
        """(divergence, nll) of some documents, summed over their tokens by weight."""
        batch = batch_of([each.document for each in group], self.student.device)
        ids_RK = torch.cat([each.ids_RK for each in group]).to(self.student.device)
        p_RK1 = torch.cat([each.logprobs_RK1 for each in group]).to(self.student.device)
        name, beta, temperature = self.targets.divergence or "forward", self.targets.beta, self.temperature

        def far(logits_RV: Tensor, rows: slice) -> Tensor:
            q_RK1 = grouped(logits_RV, ids_RK[rows], temperature)
            return divergence(name, p_RK1[rows].to(q_RK1.dtype), q_RK1, beta) * temperature**2

        return _in_chunks(self.student, batch, far)


@dataclass(kw_only=True)
class OnPolicy(OverExamples[Prompt]):
    """A recipe for `loop.train`: the student's own answers, judged token by token by the teacher.

    k   the teacher's likeliest tokens that are compared, and all others together; 0: the whole vocabulary
    """

    sampler: Sampler
    teacher: Teacher
    targets: SoftTargets
    k: int
    answers: int
    max_tokens: int

    def __post_init__(self) -> None:
        check_vocabulary(self.teacher.vocabulary, self.student)

    def step(self, number: int) -> Figures:
        drawn = self._drawn(self.of_step(number), self.answers, seed_of(self.seed, number))
        total, gap = weights_of([document for document, _ in drawn]), Gap()

        def measured(group: list[tuple[Document, tuple[float, ...]]]) -> tuple[Tensor, dict[str, float]]:
            far, nll_R = self._measured([document for document, _ in group])
            differing = gap.add(-nll_R, torch.tensor([x for _, each in group for x in each], dtype=torch.float64))
            return far, {"loss": float(far.detach()), **differing}

        sums = self.learn(number, drawn, lambda each: len(each[0].tokens), measured, total)
        return {"loss": sums["loss"] / total, "tokens": total, "length": total / len(drawn), **gap.figures(sums, self.company)}

    def evaluate(self, number: int) -> Figures:
        """How far the student is from the teacher on its own answers to held-out prompts, always the same draws."""
        if not self.held_out:
            return {}
        documents = [document for document, _ in self._drawn(self.held_out, 1, seed_of(self.seed, -1))]

        def measured(group: list[Document]) -> tuple[None, dict[str, float]]:
            return None, {"loss": float(self._measured(group)[0])}

        found = self.measure(documents, lambda each: len(each.tokens), measured)
        return {"loss": found["loss"] / weights_of(documents)}

    def _drawn(self, prompts: Sequence[Prompt], count: int, seed: int) -> list[tuple[Document, tuple[float, ...]]]:
        """Answers behind their prompts, and log p of their tokens by the engine. Each process draws some, and has all."""
        self.sampler.push(self.student)

        def draw(mine: Sequence[tuple[Prompt, int]]) -> list[list[tuple[Any, ...]]]:
            seeds = [seed for _, seed in mine]
            drawn = self.sampler.draw([each for each, _ in mine], count, max_tokens=self.max_tokens, temperature=1.0, seeds=seeds)
            return [[each.told() for each in answers] for answers in drawn]

        drawn = apart(self.company, list(zip(prompts, seeds_of(seed, len(prompts)), strict=True)), draw)
        answers = [(prompt, Drawn.heard(each)) for prompt, told in zip(prompts, drawn, strict=True) for each in told]
        return [(behind_prompt(prompt, each), each.logprobs) for prompt, each in answers]

    def _measured(self, documents: Sequence[Document]) -> tuple[Tensor, Tensor]:
        """The divergence summed over all tokens, and what each token of the answers cost the student [R]."""
        batch = batch_of(documents, self.student.device)
        teacher_RV = torch.cat([self.teacher.logits(document) for document in documents]).to(self.student.device)
        name, beta = self.targets.divergence or "reverse", self.targets.beta
        costs: dict[int, Tensor] = {}

        def far(logits_RV: Tensor, rows: slice) -> Tensor:
            costs[rows.start] = cross_entropy(logits_RV.detach(), batch.targets_R[rows], reduction="none")
            theirs_RV = teacher_RV[rows].to(logits_RV.dtype)
            if self.k:
                ids_RK, p_RK1 = most_likely(theirs_RV, self.k)
                return divergence(name, p_RK1, grouped(logits_RV, ids_RK), beta)
            return divergence(name, theirs_RV.log_softmax(dim=1), logits_RV.log_softmax(dim=1), beta)

        total, _ = _in_chunks(self.student, batch, far)
        return total, torch.cat([costs[start] for start in sorted(costs)])


def _size(each: Taught) -> int:
    return each.num_tokens


def check_vocabulary(teacher: int, student: Student) -> None:
    """`UsageError` for a teacher of another vocabulary."""
    ours = student.cfg.vocab_size
    if teacher != ours:
        raise UsageError(f"The teacher's vocabulary has {teacher} tokens and the student's {ours}; distillation needs the same one.")


def _in_chunks(student: Student, batch: Batch, far: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
    """(sum of weight * far, sum of weight * nll) over rows. Logits are there for a chunk at a time, and made again on the way back."""
    hidden_RD = student.hidden(batch)

    def chunk(hidden: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        logits_RV = student.head(hidden).to(student.tensors.wide)
        weights_R = batch.weights_R[rows].to(logits_RV.dtype)
        nll_R = cross_entropy(logits_RV, batch.targets_R[rows], reduction="none")
        return (far(logits_RV, rows) * weights_R).sum(), (nll_R * weights_R).sum()

    distance = nll = hidden_RD.new_zeros((), dtype=student.tensors.wide)
    for first in range(0, len(hidden_RD), CHUNK_ROWS):
        rows = slice(first, min(first + CHUNK_ROWS, len(hidden_RD)))
        one, other = checkpoint(chunk, hidden_RD[rows], rows, use_reentrant=False)
        distance, nll = distance + one, nll + other
    return distance, nll
