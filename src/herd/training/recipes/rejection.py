"""Rejection sampling: several answers to each prompt, and the best of them, to be learned by supervised fine-tuning.

Llama 3 drew 10 to 30 answers and kept the one that its reward model liked best (arXiv 2407.21783, section 4.2.2). Without rewards
all whole answers are kept: data that a teacher makes. What is never kept, and counted: answers that were cut by their length, empty ones,
and a text that came before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from herd.training.recipes.grpo import Problem, asked
from herd.training.settings.rejection import RejectionSettings
from herd.training.signals.rewards import Answer, Judge
from herd.training.signals.rollouts import Decode, Sampler, seed_of, seeds_of

CUT, EMPTY, TWICE, WORSE = "cut by their length", "empty", "the same as another", "not good enough"


@dataclass(frozen=True, slots=True)
class Chosen:
    """An answer, what it is worth, and why it is not kept: `CUT`, `EMPTY`, `TWICE` or `WORSE`; "": it is."""

    problem: Problem
    text: str
    reward: float
    why_not: str = ""

    @property
    def is_kept(self) -> bool:
        return not self.why_not


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
    why: dict[int, str] = {}
    for at in sorted(range(len(answers)), key=lambda index: -worth[index]):
        why[at] = _why_not(settings, answers[at], worth[at], seen)
        if not why[at]:
            seen.add(answers[at].text)
    for at, answer in enumerate(answers):
        yield Chosen(problem, answer.text, worth[at], why[at])


def _why_not(settings: RejectionSettings, answer: Answer, worth: float, kept: Collection[str]) -> str:
    """Why an answer is not kept beside those that are better."""
    if answer.is_cut:
        return CUT
    if not answer.text.strip():
        return EMPTY
    if answer.text in kept:
        return TWICE
    return "" if worth >= settings.threshold and len(kept) < settings.most else WORSE
