"""Rejection sampling: several answers to each prompt, and the best of them, to be learned by supervised fine-tuning.

Llama 3 drew 10 to 30 answers and kept the one that its reward model liked best (arXiv 2407.21783, section 4.2.2). Without rewards
the answers are kept as they are: data that a teacher makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from herd.data.samples import Task
from herd.training.recipes.grpo import Problem
from herd.training.settings.rejection import RejectionSettings
from herd.training.signals.rewards import Answer
from herd.training.signals.rollouts import Decode, Drawn, Sampler, seed_of, seeds_of


@dataclass(frozen=True, slots=True)
class Chosen:
    """An answer, what it is worth, and whether it is kept."""

    problem: Problem
    text: str
    reward: float
    is_kept: bool


def best_of(
    settings: RejectionSettings,
    problems: Sequence[Problem],
    sampler: Sampler,
    decode: Decode,
    reward: Callable[[Task, Answer], float] | None,
) -> Iterator[Chosen]:
    """All answers, those of one prompt together. Kept are the best `keep` of each that are worth at least `least` and were not cut;
    texts that come twice count once."""
    for first in range(0, len(problems), settings.batch):
        group = problems[first : first + settings.batch]
        prompts = [problem.prompt for problem in group]
        seeds = seeds_of(seed_of(settings.seed, first), len(group))
        drawn = sampler.draw(prompts, settings.answers, max_tokens=settings.max_tokens, temperature=settings.temperature, seeds=seeds)
        for problem, answers in zip(group, drawn, strict=True):
            yield from _chosen(settings, problem, answers, decode, reward)


def _chosen(
    settings: RejectionSettings, problem: Problem, answers: Sequence[Drawn], decode: Decode, reward: Callable[[Task, Answer], float] | None
) -> Iterator[Chosen]:
    texts = [decode(each.tokens) for each in answers]
    worth = [
        0.0 if reward is None else reward(problem.task, Answer(text, len(each.tokens), each.is_cut))
        for text, each in zip(texts, answers, strict=True)
    ]
    seen: set[str] = set()
    kept: set[int] = set()
    for at in sorted(range(len(answers)), key=lambda index: -worth[index]):
        is_good = not answers[at].is_cut and texts[at].strip() and (reward is None or worth[at] >= settings.least)
        if is_good and texts[at] not in seen and len(kept) < settings.keep:
            seen.add(texts[at])
            kept.add(at)
    for at, text in enumerate(texts):
        yield Chosen(problem, text, worth[at], at in kept)
