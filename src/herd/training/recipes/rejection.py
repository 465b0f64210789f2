"""Rejection sampling: several answers to each prompt, and the best of them, to be learned by supervised fine-tuning.

Llama 3 drew 10 to 30 answers and kept the one that its reward model liked best (arXiv 2407.21783, section 4.2.2). Without rewards
the answers are kept as they are: data that a teacher makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from herd.training.recipes.grpo import Problem, asked
from herd.training.settings.rejection import RejectionSettings
from herd.training.signals.rewards import Answer, Judge
from herd.training.signals.rollouts import Decode, Sampler, seed_of, seeds_of


@dataclass(frozen=True, slots=True)
class Chosen:
    """An answer, what it is worth, and whether it is kept."""

    problem: Problem
    text: str
    reward: float
    is_kept: bool


def best_of(
    settings: RejectionSettings, problems: Sequence[Problem], sampler: Sampler, decode: Decode, reward: Judge | None, begin: int = 0
) -> Iterator[list[Chosen]]:
    """All answers, those to `batch` prompts at a time, from the prompt at place `begin` on. Kept are the best `most` of each prompt that
    are worth at least `threshold` and were not cut; texts that come twice count once. What is drawn follows from the seed and the place
    of a batch alone, so whoever goes on where another stopped has what that one would have had."""
    for first in range(begin, len(problems), settings.batch):
        group = problems[first : first + settings.batch]
        prompts = [problem.prompt for problem in group]
        seeds = seeds_of(seed_of(settings.seed, first), len(group))
        drawn = sampler.draw(prompts, settings.answers, max_tokens=settings.max_tokens, temperature=settings.temperature, seeds=seeds)
        to_judge = asked(group, drawn, decode)
        worth = [0.0] * len(to_judge) if reward is None else reward(to_judge)
        found: list[Chosen] = []
        for at, problem in enumerate(group):
            own = slice(at * settings.answers, (at + 1) * settings.answers)
            found += _chosen(settings, problem, [answer for _, answer in to_judge[own]], worth[own])
        yield found


def _chosen(settings: RejectionSettings, problem: Problem, answers: Sequence[Answer], worth: Sequence[float]) -> Iterator[Chosen]:
    seen: set[str] = set()
    kept: set[int] = set()
    for at in sorted(range(len(answers)), key=lambda index: -worth[index]):
        answer = answers[at]
        is_good = not answer.is_cut and answer.text.strip() and worth[at] >= settings.threshold
        if is_good and answer.text not in seen and len(kept) < settings.most:
            seen.add(answer.text)
            kept.add(at)
    for at, answer in enumerate(answers):
        yield Chosen(problem, answer.text, worth[at], at in kept)
