"""Every recipe over a tiny model and made-up data, for one process or for several; `together.py` runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from herd.backends.base import BackendOptions
from herd.backends.cpu.backend import CpuBackend
from herd.data.reading import Place
from herd.data.samples import Task
from herd.data.tokenising import Example
from herd.engine.engine import Engine
from herd.text.messages import Message, Role
from herd.training.company import Company
from herd.training.recipes.distill import Distillation, EngineTeacher, OnPolicy, taught
from herd.training.recipes.grpo import Grpo, Problem
from herd.training.recipes.preferences import Judgement, Pair, Preferences, Reference
from herd.training.recipes.reward_model import RewardModel, RewardTraining
from herd.training.recipes.sft import Sft
from herd.training.settings.distill import SoftTargets
from herd.training.settings.grpo import PolicyLoss, Rollouts
from herd.training.settings.preferences import PreferenceLoss
from herd.training.signals.rewards import Answer, one_by_one
from herd.training.signals.rollouts import EngineSampler, Prompt
from herd.training.student.batches import Document
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama

LENGTHS = (9, 5, 14, 7, 11, 6, 8)
PROMPTS = [Prompt(tuple(range(10 + at, 14 + 2 * at))) for at in range(5)]


def document(example: Example) -> Document:
    return Document(example.tokens, example.weights)


def examples(documents: Sequence[Document]) -> list[Example]:
    return [Example(each.tokens, each.weights) for each in documents]


def engine(seed: int = 0) -> Engine:
    leaves = random_leaves(tiny_llama(), seed=seed)
    backend = CpuBackend(tiny_llama(), leaves.__getitem__, BackendOptions(threads=1, activations="float32"), lambda: None)
    return Engine(backend, context_length=128, stop_ids={3}, max_batch=8)


def small_numbers(task: Task, answer: Answer) -> float:
    """The share of an answer's tokens below 160."""
    ids = [int(each) for each in answer.text.split()]
    return sum(each < 160 for each in ids) / max(1, len(ids))


def recipe_of(name: str, student: Student, frozen: Student, documents_of: Callable[..., list[Document]], company: Company) -> Any:
    """The recipe of this name. Steps of three items in packs of at most twenty tokens, so that packs do not divide."""
    common: dict[str, Any] = {"pack": 20, "seed": 3, "company": company}
    some, others = examples(documents_of(LENGTHS, 1)), examples(documents_of(LENGTHS, 2))
    pairs = [Pair(chosen, rejected) for chosen, rejected in zip(some, others, strict=True)]
    if name == "sft":
        return Sft(student=student, learned=some, held_out=others[:3], size=3, document=document, **common)
    if name == "reward":
        return RewardTraining(model=RewardModel(student), learned=pairs, held_out=pairs[:3], size=3, document=document, **common)
    if name in ("dpo", "kto"):
        judged = [Judgement(each, index % 2 == 0) for index, each in enumerate(some)]
        items: list[Any] = pairs if name == "dpo" else judged
        more: dict[str, Any] = {"loss": PreferenceLoss(method=name), "reference": Reference(student, frozen)}
        return Preferences(student=student, learned=items, held_out=items[:3], size=3, document=document, **common, **more)
    teacher = EngineTeacher(engine(1))
    if name == "distill":
        words = list(taught(teacher, documents_of(LENGTHS, 1), 5))
        more = {"targets": SoftTargets(), "temperature": 1.0, "steps": 3}
        return Distillation(student=student, learned=words, held_out=words[:3], size=3, **common, **more)
    lists: dict[str, Any] = {"student": student, "sampler": EngineSampler(engine()), **common}
    if name == "onpolicy":
        more = {"targets": SoftTargets(), "k": 0, "answers": 1, "max_tokens": 5, "teacher": teacher}
        return OnPolicy(learned=PROMPTS, held_out=PROMPTS[:3], size=3, **lists, **more)
    problems = [Problem(Task(Place(Path("t"), 1), (Message(Role.USER, "?"),), {}), prompt) for prompt in PROMPTS]
    rollouts = Rollouts(prompts=3, answers=3, max_tokens=5, reuse=2 if name == "grpo again" else 1, filter_every=2)
    more = {"loss": PolicyLoss(sampler_most=0), "rollouts": rollouts, "reward": one_by_one(small_numbers)}
    decode = {"decode": lambda ids: " ".join(str(each) for each in ids)}
    return Grpo(learned=problems, held_out=problems[:3], **lists, **more, **decode)
