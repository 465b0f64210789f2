"""A reward model: the language model with one number per text in place of the next token, learned from pairs of answers.

    prompt and answer -> its last token's values after the last norm -> x · w = reward;     - log sigmoid(r_chosen - r_rejected - margin)

Files: the updates (or weights) as every run leaves them, and `reward.safetensors` with w beside them. Llama 3 leaves the margin out;
Llama 2 took one from how much better the chosen answer was judged (`margin` of a record).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from herd.data.tokenising import Example
from herd.errors import FileProblem
from herd.files.writing import atomic_write
from herd.training.recipes.packed import OverExamples
from herd.training.recipes.preferences import Pair
from herd.training.running.loop import Figures
from herd.training.signals import losses
from herd.training.signals.answers import in_groups
from herd.training.student.batches import Document, batch_of
from herd.training.student.model import Student

HEAD = "reward.head"
FILE = "reward.safetensors"
MAX_FILE_BYTES = 64 << 20


class RewardModel:
    """A student and the vector that its last values are multiplied by. It begins at zero: all rewards are equal."""

    def __init__(self, student: Student, head_D: Tensor | None = None) -> None:
        self.student = student
        width = student.cfg.width
        value = torch.zeros(width, dtype=student.tensors.wide, device=student.device) if head_D is None else head_D
        self.head_D = torch.nn.Parameter(value.to(student.device, student.tensors.wide))

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {**self.student.parameters, HEAD: self.head_D}

    def rewards(self, documents: Sequence[Document]) -> Tensor:
        """One number for each document [N], differentiable."""
        batch = batch_of([_to_the_end(document) for document in documents], self.student.device)
        hidden_ND = self.student.hidden(batch).to(self.head_D.dtype)
        found: Tensor = hidden_ND @ self.head_D
        return found

    @torch.no_grad()
    def judge(self, documents: Sequence[Document], pack: int = 4096) -> list[float]:
        """Rewards of any number of documents, a pack at a time."""
        self.student.rest()
        found: list[float] = []
        for group in in_groups(documents, lambda each: len(each.tokens), pack):
            found += self.rewards(group).tolist()
        return found

    def save_head(self, folder: Path) -> None:
        """Writes `reward.safetensors` beside the student's own files."""
        with atomic_write(folder / FILE) as file:
            file.write(save({HEAD: self.head_D.detach().to("cpu", torch.float32).contiguous()}))


def read_head(folder: Path, width: int) -> Tensor:
    """The vector that `save_head` wrote. `FileProblem` for a file that is not one of a model of this width."""
    path = folder / FILE
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FileProblem(f"{path}: is larger than {MAX_FILE_BYTES} bytes, and should hold one vector.")
        tensors = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise FileProblem(f"{path}: cannot be read as a reward model's head: {problem}.") from problem
    head_D = tensors.get(HEAD)
    if head_D is None or tuple(head_D.shape) != (width,) or head_D.dtype != torch.float32 or not bool(head_D.isfinite().all()):
        found = "nothing of that name" if head_D is None else f"{head_D.dtype} {list(head_D.shape)}"
        raise FileProblem(f"{path}: {HEAD} should be {width} finite float32 numbers; there is {found}.")
    return head_D


@dataclass(kw_only=True)
class RewardTraining(OverExamples[Pair]):
    """A recipe for `loop.train`."""

    model: RewardModel
    document: Callable[[Example], Document]
    centre: float = 0.01
    student: Student = field(init=False)

    def __post_init__(self) -> None:
        self.student = self.model.student

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return self.model.parameters

    def step(self, number: int) -> Figures:
        pairs = self.of_step(number)
        total = self.learn(number, pairs, _size, self._measured, len(pairs))
        return {name: value if name == "tokens" else value / len(pairs) for name, value in total.items()}

    def evaluate(self, number: int) -> Figures:
        total = self.measure(self.held_out, _size, self._measured)
        return {name: value / len(self.held_out) for name, value in total.items() if name != "tokens"}

    def _measured(self, pairs: Sequence[Pair]) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses of some pairs, and sums of figures. "tokens": one number of each text carries loss."""
        rewards_N = self.model.rewards([self.document(example) for pair in pairs for example in (pair.chosen, pair.rejected)])
        margin_P = rewards_N.new_tensor([pair.margin for pair in pairs])
        chosen_P, rejected_P = rewards_N[0::2], rewards_N[1::2]
        value_P = losses.bradley_terry(chosen_P, rejected_P, margin_P, self.centre)
        ahead_P = (chosen_P - rejected_P).detach()
        figures = {"loss": value_P.detach().sum(), "accuracy": (ahead_P > 0).sum(), "margin": ahead_P.sum()}
        return value_P.sum(), {name: float(value) for name, value in figures.items()} | {"tokens": float(2 * len(pairs))}


def _size(pair: Pair) -> int:
    return pair.num_tokens


def _to_the_end(document: Document) -> Document:
    """Up to the last token of the answer (what a format writes behind it is not there yet when an answer is drawn), and so that its row
    is among those that are computed: one more token that only this row predicts. No token sees it."""
    end = 1 + max(at for at, weight in enumerate(document.weights) if weight)
    return Document((*document.tokens[:end], document.tokens[end - 1]), (0.0,) * end + (1.0,), document.pictures)
