"""What rejection sampling does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

import math

from herd.records import dataclass
from herd.training.settings.reading import need, need_backend, need_least
from herd.training.settings.rewards import RewardSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionSettings:
    """Rejection sampling: the best of several answers to each prompt, written down to be learned.

    model         who answers: a name that `herd models` lists, a .gguf file, a folder, or a finished run
    data          files or folders of prompts, with what their answers are checked by where there are rewards
    chat_format   how conversations become tokens, for models that do not say
    rewards       what answers are worth; none: an answer is worth as much as another
    answers       answers drawn to each prompt
    keep          how many of them are kept at most; not said: the best one, without rewards all
    least         with rewards: what an answer must be worth to be kept; not said: 1 where every reward is a check, else (of a reward
                  model) anything
    max_prompt    the longest prompt in tokens; longer ones are dropped
    max_tokens    the longest answer; those that are cut there are not kept
    temperature   of drawing
    batch         prompts that are answered at a time
    backend       what answers are drawn by: cpu, torch or reference
    seed          what everything that is drawn comes from
    """

    model: str
    data: tuple[str, ...]
    chat_format: str | None = None
    rewards: tuple[RewardSettings, ...] = ()
    answers: int = 8
    keep: int | None = None
    least: float | None = None
    max_prompt: int = 1024
    max_tokens: int = 512
    temperature: float = 1.0
    batch: int = 8
    backend: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        need(len(self.data) > 0, "data", self.data, "files or folders")
        need_least(self, 1, "answers", "max_prompt", "max_tokens", "batch")
        need(0 <= self.temperature <= 10, "temperature", self.temperature, "a number from 0 to 10")
        need(self.keep is None or self.keep >= 1, "keep", self.keep, "a whole number, 1 or more")
        need(self.least is None or bool(self.rewards), "least", self.least, "nothing without rewards, which say what an answer is worth")
        need_backend(self.backend)
        need(self.least is None or math.isfinite(self.least), "least", self.least, "a finite number")
        need(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2^63 - 1")

    @property
    def most(self) -> int:
        """How many answers to a prompt are kept at most."""
        if self.keep is not None:
            return self.keep
        return 1 if self.rewards else self.answers

    @property
    def threshold(self) -> float:
        """What an answer must be worth to be kept, as a number."""
        if self.least is not None:
            return self.least
        return 1.0 if self.rewards and all(each.kind != "model" for each in self.rewards) else -math.inf
