"""What supervised fine-tuning does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

import math
from dataclasses import field, replace

from herd.records import dataclass
from herd.training.loop_settings import LoopSettings
from herd.training.optimiser_settings import OptimiserSettings
from herd.training.schedules import Schedule
from herd.training.settings import need
from herd.training.student_settings import StudentSettings

LEARN = ("answers", "last", "all")
TOO_LONG = ("drop", "cut", "split")
LR = {"lora": 1e-3, "full": 5e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings:
    """Supervised fine-tuning: a model learns the answers of conversations.

    model         what is tuned: a name that `herd models` lists, a .gguf file, a folder, or a finished run
    data          files or folders of conversations, prompts with completions, or text
    shape         how records are written, where that is not to be detected: messages, sharegpt, alpaca, pairs, text
    chat_format   how conversations become tokens, for models that do not say
    learn         what carries loss: "answers" of the assistant, the "last" of them, or "all"
    held_out      examples that are measured and not learned: a share below 1, or how many; 0: none
    max_tokens    the longest example
    too_long      what becomes of a longer one: "drop" it, "cut" its end off, or "split" a text into several
    batch         examples of a step
    pack          tokens that are computed together: documents are packed up to there, and the gradients of several packs are added up
    epochs        how often each example is seen; 0: loop.schedule.steps says how long the run is
    lr            the peak learning rate; 0: 0.001 with LoRA and 0.00005 for all weights. loop.schedule.lr follows it
    samples       held-out prompts that the model answers before and after; 0: none
    student       what of the model is learned
    optimiser     how weights are changed
    loop          the schedule, and what is kept of the run
    """

    model: str
    data: tuple[str, ...]
    shape: str | None = None
    chat_format: str | None = None
    learn: str = "answers"
    held_out: float = 0.05
    max_tokens: int = 2048
    too_long: str = "drop"
    batch: int = 8
    pack: int = 1024
    epochs: float = 3.0
    lr: float = 0.0
    samples: int = 3
    student: StudentSettings = field(default_factory=StudentSettings)
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(weight_decay=0.0, beta2=0.999))
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        need(len(self.data) > 0, "data", self.data, "files or folders")
        need(self.learn in LEARN, "learn", self.learn, " or ".join(LEARN))
        need(self.too_long in TOO_LONG, "too_long", self.too_long, " or ".join(TOO_LONG))
        for name in ("held_out", "epochs", "lr"):
            value = getattr(self, name)
            need(math.isfinite(value) and value >= 0, name, value, "a number, 0 or more")
        for name in ("batch", "pack"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "a whole number, 1 or more")
        need(self.max_tokens >= 2, "max_tokens", self.max_tokens, "a whole number, 2 or more")
        need(self.samples >= 0, "samples", self.samples, "a whole number, 0 or more")
        steps, rate = self.loop.schedule.steps, self.loop.schedule.lr
        need(not self.epochs or steps == Schedule().steps, "loop.schedule.steps", steps, "nothing where epochs say it; or set epochs = 0")
        need(rate in (Schedule().lr, self._peak), "loop.schedule.lr", rate, f"nothing: lr says it, which is {self._peak}")

    @property
    def _peak(self) -> float:
        return self.lr or LR[self.student.method]

    def resolved(self, count: int) -> SftSettings:
        """With numbers in place of what follows from others, for `count` examples to learn from. What is resolved stays as it is."""
        steps = max(1, math.ceil(self.epochs * count / self.batch)) if self.epochs else self.loop.schedule.steps
        schedule = replace(self.loop.schedule, steps=steps, lr=self._peak)
        return replace(self, epochs=0.0, lr=self._peak, loop=replace(self.loop, schedule=schedule))
