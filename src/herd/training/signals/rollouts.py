"""Answers drawn from the model that is being trained, by an engine that has its weights of now.

    prompts -> engine (several at a time, prompts computed once for all answers to them) -> answers with the log-probability of each token

The engine is passed in: any backend will do. Before each step `push` brings it the weights: low-rank updates as an adapter of the
running engine, all weights by `Engine.update`. Engine and trainer compute the same function in different ways, so their
log-probabilities differ a little; `Gap` measures by how much, on every token of every step, and the recipe logs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from herd.backends.base import Placed
from herd.engine.engine import Engine
from herd.engine.request import Progress, Request
from herd.errors import UsageError
from herd.models.weights import Matrix
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason
from herd.training.company import ALONE, Company
from herd.training.student.batches import Document
from herd.training.student.model import Student

ADAPTER = "herd-training"
"""The name under which the engine has the updates that are being trained."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be answered."""

    tokens: tuple[int, ...]
    pictures: tuple[Placed, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """An answer: its tokens, a stop token included, and log p of each before temperature. `is_cut`: it was ended by its length."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_cut: bool

    def told(self) -> tuple[Any, ...]:
        """What other processes are told of it."""
        return self.tokens, self.logprobs, self.is_cut

    @classmethod
    def heard(cls, told: Sequence[Any]) -> Drawn:
        """The same answer from what was told of it."""
        tokens, logprobs, is_cut = told
        return cls(tuple(tokens), tuple(logprobs), is_cut)


def behind_prompt(prompt: Prompt, drawn: Drawn) -> Document:
    """An answer behind its prompt, as a student learns it."""
    return Document(prompt.tokens + drawn.tokens, (0.0,) * len(prompt.tokens) + (1.0,) * len(drawn.tokens), prompt.pictures)


class Sampler(Protocol):
    """Draws answers from some state of a student."""

    def push(self, student: Student) -> None:
        """From now on answers come from the student's weights of now."""
        ...

    def draw(
        self, prompts: Sequence[Prompt], count: int, *, max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[list[Drawn]]:
        """`count` answers to each prompt; the same ones for the same seed of it and weights. With temperature 0 the most likely one."""
        ...


class EngineSampler:
    """Draws from an engine that nobody else uses meanwhile. It has the student's base weights from the start, but for those in `base`: what
    the student learns over that is not as the engine has it, a base in blocks (QLoRA), say."""

    def __init__(self, engine: Engine, base: Mapping[str, Matrix] = MappingProxyType({})) -> None:
        self._engine, self._base = engine, base
        self._adapter: str | None = None

    def push(self, student: Student) -> None:
        if self._base:
            self._engine.update(self._base)
            self._base = {}
        if student.lora is None or student.lora.dora:
            self._engine.update(student.leaves())
            return
        if ADAPTER in self._engine.adapters:
            self._engine.remove_adapter(ADAPTER)
        self._engine.add_adapter(ADAPTER, student.updates())
        self._adapter = ADAPTER

    def draw(
        self, prompts: Sequence[Prompt], count: int, *, max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[list[Drawn]]:
        requests = [
            Request(
                tokens=prompt.tokens,
                pictures=prompt.pictures,
                sampling=SamplingParams(temperature=temperature, seed=seed),
                max_tokens=max_tokens,
                choice_index=choice,
                adapter=self._adapter,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
            for choice in range(count)
        ]
        found = _answered(self._engine, requests)
        return [found[first : first + count] for first in range(0, len(found), count)]


def seed_of(seed: int, index: int) -> int:
    """A seed for one prompt of a step, far from those of its neighbours."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0x94D049BB133111EB) & (2**64 - 1)
    return mixed >> 1


def seeds_of(seed: int, count: int) -> list[int]:
    """One for each prompt of a step, whoever draws its answers."""
    return [seed_of(seed, index) for index in range(count)]


def _answered(engine: Engine, requests: Sequence[Request]) -> list[Drawn]:
    """Runs requests to their ends, in their order. Raises what goes wrong with any of them; the others are cancelled then."""
    for request in requests:
        engine.validate(request)
    sequences = [engine.submit(request) for request in requests]
    tokens: dict[int, list[int]] = {each.number: [] for each in sequences}
    logprobs: dict[int, list[float]] = {each.number: [] for each in sequences}
    reasons = {each.number: each.stop_reason for each in sequences}
    try:
        while any(reasons[each.number] is None for each in sequences):
            for progress in engine.step():
                if progress.sequence.number in tokens:
                    _take(progress, tokens[progress.sequence.number], logprobs[progress.sequence.number])
                    reasons[progress.sequence.number] = progress.stop_reason
    finally:
        for each in sequences:
            engine.cancel(each)
    return [
        Drawn(tuple(tokens[each.number]), tuple(logprobs[each.number]), reasons[each.number] is StopReason.LENGTH) for each in sequences
    ]


def _take(progress: Progress, tokens: list[int], logprobs: list[float]) -> None:
    if progress.error is not None:
        raise progress.error
    if progress.stop_reason is StopReason.CANCELLED:
        raise UsageError("An answer was cancelled while it was drawn; nobody else may use the engine of a training run.")
    if progress.token is not None:
        tokens.append(progress.token)
        logprobs.append(progress.logprob)


class Gap:
    """How far the engine's log-probabilities are from the trainer's, over all tokens of a step."""

    def __init__(self) -> None:
        self._most = 0.0

    def add(self, trainer_R: Tensor, sampler_R: Tensor) -> dict[str, float]:
        """Log-probabilities of the same tokens, at temperature 1. Gives sums that belong to the figures of the tokens' pack: a pack that
        two processes compute so that both have one counts once."""
        difference_R = (trainer_R.detach().to(torch.float32) - sampler_R.to(torch.float32)).abs()
        if len(difference_R):
            self._most = max(self._most, float(difference_R.max()))
        return {"gap_sum": float(difference_R.sum(dtype=torch.float64)), "gap_tokens": float(len(difference_R))}

    def figures(self, sums: Mapping[str, float], company: Company = ALONE) -> dict[str, float]:
        """Over the tokens of all processes; `sums` of what `add` gave."""
        return {"gap": sums["gap_sum"] / max(1.0, sums["gap_tokens"]), "gap_most": max(company.exchanged(self._most))}


Decode = Callable[[Sequence[int]], str]
"""Token ids of an answer -> its text, without stop tokens and other control tokens."""
