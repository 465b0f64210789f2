"""What the training of a reward model does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

import math
from dataclasses import field, replace

from herd.records import dataclass
from herd.training.loop_settings import LoopSettings
from herd.training.optimiser_settings import OptimiserSettings
from herd.training.preference_settings import check_length, run_length
from herd.training.settings import need
from herd.training.student_settings import StudentSettings

LR = {"lora": 1e-4, "full": 5e-6}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelSettings:
    """A reward model: a language model that learns to tell the better of two answers by one number for each.

    model         what is tuned: a name that `herd models` lists, a .gguf file, a folder, or a finished run
    data          files or folders of pairs (prompt, chosen, rejected)
    chat_format   how conversations become tokens, for models that do not say
    held_out      pairs that are measured and not learned: a share below 1, or how many; 0: none
    max_tokens    the longest answer with its prompt; longer ones are dropped
    batch         pairs of a step
    pack          tokens that are computed together
    epochs        how often each pair is seen; 0: loop.schedule.steps says how long the run is
    lr            the peak learning rate; 0: 0.0001 with LoRA and 0.000005 for all weights. loop.schedule.lr follows it
    centre        how firmly rewards are held near zero; only their differences are learned
    student       what of the model is learned
    optimiser     how weights are changed
    loop          the schedule, and what is kept of the run
    """

    model: str
    data: tuple[str, ...]
    chat_format: str | None = None
    held_out: float = 0.05
    max_tokens: int = 2048
    batch: int = 8
    pack: int = 4096
    epochs: float = 1.0
    lr: float = 0.0
    centre: float = 0.01
    student: StudentSettings = field(default_factory=lambda: StudentSettings(method="lora"))
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(weight_decay=0.0, beta2=0.999))
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        need(len(self.data) > 0, "data", self.data, "files or folders")
        need(math.isfinite(self.centre) and self.centre >= 0, "centre", self.centre, "a number, 0 or more")
        check_length(self, self.peak)

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return self.lr or LR[self.student.method]

    def resolved(self, count: int) -> RewardModelSettings:
        """With numbers in place of what follows from others, for `count` pairs to learn from."""
        return replace(self, epochs=0.0, lr=self.peak, loop=run_length(self.loop, self.epochs, self.batch, self.peak, count))
