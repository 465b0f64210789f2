"""What online reinforcement learning does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import ClassVar, Self

from herd.errors import UsageError
from herd.records import dataclass
from herd.training.schedules import Schedule
from herd.training.settings.optimiser import OptimiserSettings
from herd.training.settings.reading import need, need_backend, need_least, need_positive
from herd.training.settings.rewards import RewardSettings
from herd.training.settings.student import StudentSettings, low_rank
from herd.training.settings.tuning import TuningSettings

VARIANTS = ("grpo", "dr_grpo", "dapo")
OVERS = ("answers", "tokens", "constant")
SCALES = ("group", "batch", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """How rewards become gradients. Formulas and papers: training/signals/losses.py.

    scale         what differences of rewards are divided by: "group" (the standard deviation of the answers to one prompt), "batch" or
                  "none" (Dr. GRPO)
    over          the mean over a step: of "answers" (GRPO), of "tokens" (DAPO), or a "constant" divisor (Dr. GRPO)
    clip_low      how far below 1 the ratio of new to old probability still counts
    clip_high     how far above 1; DAPO took 0.28
    kl            weight of the distance from the model as it was (k3); 0: none, and no reference is computed
    sampler_most  most that a token may count more because the engine's probability was lower than the trainer's; 0: not corrected, and
                  neither where rollouts.temperature is not 1, as the engine's probabilities are those of temperature 1
    """

    scale: str = "group"
    over: str = "tokens"
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0
    sampler_most: float = 2.0

    def __post_init__(self) -> None:
        need(self.scale in SCALES, "scale", self.scale, " or ".join(SCALES))
        need(self.over in OVERS, "over", self.over, " or ".join(OVERS))
        need(0 < self.clip_low < 1, "clip_low", self.clip_low, "a number between 0 and 1")
        need_positive(self, "clip_high", "kl", "sampler_most")


def variant(name: str) -> PolicyLoss:
    """The losses of the papers: "grpo", "dr_grpo", "dapo"."""
    match name:
        case "grpo":
            return PolicyLoss(scale="group", over="answers", clip_high=0.2, kl=0.04)
        case "dr_grpo":
            return PolicyLoss(scale="none", over="constant", clip_high=0.2)
        case "dapo":
            return PolicyLoss(scale="group", over="tokens", clip_high=0.28)
    raise UsageError(f"There is no variant {name!r:.40}; there are {', '.join(VARIANTS)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """How answers are drawn.

    prompts         prompts of a step
    answers         answers to each prompt
    max_tokens      the longest answer
    temperature     of drawing; the trained probabilities have it too
    redraw          how many times more prompts are drawn for those whose answers all have the same reward (DAPO's dynamic sampling)
    reuse           optimiser steps that learn from the same answers
    overlong        tokens before the longest answer from which on its reward shrinks (DAPO's soft punishment); 0: none
    drop_cut        whether answers that were cut at the longest carry no loss
    filter_every    steps after which prompts are tried again and only medium and hard ones are kept (Llama 4); 0: never. Not with a
                    reward model, whose rewards have no best
    filter_least    share of the best possible reward that its answers must reach on average for a prompt to be kept
    filter_most     the share above which a prompt is too easy
    """

    prompts: int = 4
    answers: int = 8
    max_tokens: int = 256
    temperature: float = 1.0
    redraw: int = 2
    reuse: int = 1
    overlong: int = 0
    drop_cut: bool = False
    filter_every: int = 0
    filter_least: float = 0.0
    filter_most: float = 0.9

    def __post_init__(self) -> None:
        need_least(self, 0, "redraw", "filter_every")
        need_least(self, 1, "prompts", "max_tokens", "reuse")
        need_least(self, 2, "answers")
        need(0 < self.temperature <= 10, "temperature", self.temperature, "a number above 0, up to 10")
        need(0 <= self.overlong < self.max_tokens, "overlong", self.overlong, "fewer tokens than max_tokens")
        need(0 <= self.filter_least <= self.filter_most <= 1, "filter_least", self.filter_least, "a share up to filter_most")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoSettings(TuningSettings):
    """Online reinforcement learning (GRPO, Dr. GRPO, DAPO): a model answers prompts and learns from which answers were better.

    data          files or folders of prompts with what their answers are checked by (answer, tests, schema), if not by a model
    held_out      prompts that are measured and not learned: a share below 1, or how many; 0: none
    max_prompt    the longest prompt in tokens; longer ones are dropped
    steps         how many steps the run has
    lr            the peak learning rate; 0: 0.00002 with LoRA and 0.000001 for all weights. loop.schedule.lr follows it
    backend       what answers are drawn by: cpu, torch or reference
    rewards       what answers are worth; their sum by weights
    loss          how rewards become gradients
    rollouts      how answers are drawn
    """

    RATES: ClassVar[Mapping[str, float]] = MappingProxyType({"lora": 2e-5, "full": 1e-6})

    max_prompt: int = 1024
    steps: int = 100
    backend: str = "cpu"
    rewards: tuple[RewardSettings, ...] = (RewardSettings(kind="number"),)
    loss: PolicyLoss = field(default_factory=PolicyLoss)
    rollouts: Rollouts = field(default_factory=Rollouts)
    student: StudentSettings = field(default_factory=low_rank)
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(weight_decay=0.0, beta2=0.99))

    def __post_init__(self) -> None:
        TuningSettings.__post_init__(self)
        need(len(self.rewards) > 0, "rewards", self.rewards, "at least one")
        need_least(self, 1, "steps", "max_prompt")
        need_backend(self.backend)
        every, has_best = self.rollouts.filter_every, all(each.kind != "model" for each in self.rewards)
        need(has_best or not every, "rollouts.filter_every", every, "0: no reward is the best that a reward model can give")
        steps = self.loop.schedule.steps
        need(steps in (Schedule().steps, self.steps), "loop.schedule.steps", steps, "nothing: steps says it")

    def resolved(self, learned: int, held_out: int = 0) -> Self:
        """As `EpochSettings.resolved`; how much there is to learn from does not count, `steps` says how long the run is."""
        return self._for_steps(self.steps, held_out)
