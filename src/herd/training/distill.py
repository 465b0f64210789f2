"""Distillation: a student learns what a teacher thinks could come next, not only what did.

    off-policy   the teacher read a data set once and its likeliest tokens were kept (`teacher_file.py`):
                     loss = w · divergence(teacher, student) + (1 - w) · nll          w goes from `start` to `end` over the run
    on-policy    the student answers prompts, and the teacher says of each token of the answer what it thinks of it:
                     loss = reverse KL(student, teacher), over the whole vocabulary or the teacher's k likeliest tokens (GKD, MiniLLM)

Both need the same vocabulary. Divergences, and what becomes of the tokens that were not kept: `divergences.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from herd.data.order import index_at
from herd.engine.engine import Engine
from herd.errors import UsageError
from herd.training.answers import in_groups
from herd.training.batches import Batch, Document, batch_of
from herd.training.distill_settings import SoftTargets
from herd.training.divergences import SoftWeight, divergence, grouped, most_likely
from herd.training.loop import Figures
from herd.training.rollouts import Gap, Prompt, Sampler, seed_of
from herd.training.student import Student
from herd.training.teacher_file import Taught, weights_of

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
class Distillation:
    """Off-policy: a recipe for `loop.train`. steps: how long the run is, for the weight of soft targets."""

    student: Student
    learned: Sequence[Taught]
    held_out: Sequence[Taught]
    targets: SoftTargets
    temperature: float
    steps: int
    size: int
    pack: int
    seed: int

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return self.student.parameters

    @property
    def weight(self) -> SoftWeight:
        return SoftWeight(start=self.targets.start, end=self.targets.end, shape=self.targets.shape)

    def step(self, number: int) -> Figures:
        first = number * self.size
        chosen = [self.learned[index_at(self.seed, len(self.learned), first + offset)] for offset in range(self.size)]
        soft = self.weight.at(number, self.steps)
        total = weights_of([each.document for each in chosen])
        sums = {"loss": 0.0, "divergence": 0.0, "nll": 0.0}
        for part, group in enumerate(in_groups(chosen, lambda each: each.num_tokens, self.pack)):
            self.student.begin(number, part)
            far, nll = self._measured(group)
            loss = (soft * far + (1 - soft) * nll) / total
            loss.backward()  # type: ignore[no-untyped-call]
            sums["loss"] += float(loss.detach())
            sums["divergence"] += float(far.detach()) / total
            sums["nll"] += float(nll.detach()) / total
        tokens = sum(len(each.ids_RK) for each in chosen)
        return {**sums, "tokens": float(tokens), "soft": soft}

    @torch.no_grad()
    def evaluate(self, number: int) -> Figures:
        """What held-out tokens cost the student ("loss": the true tokens alone), and how far it is from the teacher on them."""
        if not self.held_out:
            return {}
        self.student.rest()
        far = nll = 0.0
        for group in in_groups(self.held_out, lambda each: each.num_tokens, self.pack):
            one, other = self._measured(group)
            far, nll = far + float(one), nll + float(other)
        total = weights_of([each.document for each in self.held_out])
        return {"loss": nll / total, "perplexity": math.exp(min(nll / total, 700.0)), "divergence": far / total}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        assert not tensors and not values, "nothing was kept"

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
class OnPolicy:
    """A recipe for `loop.train`: the student's own answers, judged token by token by the teacher.

    k   the teacher's likeliest tokens that are compared, and all others together; 0: the whole vocabulary
    """

    student: Student
    sampler: Sampler
    teacher: Teacher
    learned: Sequence[Prompt]
    held_out: Sequence[Prompt]
    targets: SoftTargets
    k: int
    size: int
    answers: int
    max_tokens: int
    pack: int
    seed: int

    def __post_init__(self) -> None:
        check_vocabulary(self.teacher.vocabulary, self.student)

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return self.student.parameters

    def step(self, number: int) -> Figures:
        first = number * self.size
        prompts = [self.learned[index_at(self.seed, len(self.learned), first + offset)] for offset in range(self.size)]
        documents, sampled = self._drawn(prompts, self.answers, 1.0, seed_of(self.seed, number))
        total, gap, loss = weights_of(documents), Gap(), 0.0
        for part, group in enumerate(in_groups(list(zip(documents, sampled, strict=True)), lambda each: len(each[0].tokens), self.pack)):
            self.student.begin(number, part)
            far, nll_R = self._measured([document for document, _ in group])
            gap.add(-nll_R, torch.tensor([x for _, each in group for x in each], dtype=torch.float64))
            (far / total).backward()  # type: ignore[no-untyped-call]
            loss += float(far.detach()) / total
        return {"loss": loss, "tokens": total, "length": total / len(documents), **gap.figures()}

    @torch.no_grad()
    def evaluate(self, number: int) -> Figures:
        """How far the student is from the teacher on its own answers to held-out prompts, always the same draws."""
        if not self.held_out:
            return {}
        self.student.rest()
        documents, _ = self._drawn(self.held_out, 1, 1.0, seed_of(self.seed, -1))
        far = sum(float(self._measured(group)[0]) for group in in_groups(documents, lambda each: len(each.tokens), self.pack))
        return {"loss": far / weights_of(documents)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        assert not tensors and not values, "nothing was kept"

    def _drawn(
        self, prompts: Sequence[Prompt], count: int, temperature: float, seed: int
    ) -> tuple[list[Document], list[tuple[float, ...]]]:
        self.sampler.push(self.student)
        drawn = self.sampler.draw(prompts, count, max_tokens=self.max_tokens, temperature=temperature, seed=seed)
        documents, logprobs = [], []
        for prompt, answers in zip(prompts, drawn, strict=True):
            for answer in answers:
                weights = (0.0,) * len(prompt.tokens) + (1.0,) * len(answer.tokens)
                documents.append(Document(prompt.tokens + answer.tokens, weights, prompt.pictures))
                logprobs.append(answer.logprobs)
        return documents, logprobs

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
