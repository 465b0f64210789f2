"""What distillation does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

import math
from dataclasses import field, replace

from herd.records import dataclass
from herd.training.loop_settings import LoopSettings
from herd.training.optimiser_settings import OptimiserSettings
from herd.training.preference_settings import run_length
from herd.training.schedules import Schedule
from herd.training.settings import need
from herd.training.student_settings import StudentSettings

DIVERGENCES = ("forward", "reverse", "js")
SHAPES = ("constant", "linear", "cosine")
WAYS = ("stored", "on-policy")
LR = {"lora": 2e-4, "full": 5e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTargets:
    """How the teacher counts. Formulas: training/divergences.py.

    divergence   "forward": cover all that the teacher does; "reverse": keep to it; "js": between them; empty: forward, on-policy reverse
    beta         of js: the teacher's part of the mixture
    start        weight of the teacher at the first step, beside the token that really follows
    end          its weight at the last step
    shape        how it goes from one to the other: "constant", "linear" or "cosine"
    """

    divergence: str = ""
    beta: float = 0.5
    start: float = 0.5
    end: float = 0.5
    shape: str = "linear"

    def __post_init__(self) -> None:
        need(self.divergence in ("", *DIVERGENCES), "divergence", self.divergence, " or ".join(DIVERGENCES))
        need(self.shape in SHAPES, "shape", self.shape, " or ".join(SHAPES))
        need(0 < self.beta < 1, "beta", self.beta, "a number between 0 and 1")
        for name in ("start", "end"):
            need(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """Distillation: a model learns what a larger one of the same vocabulary thinks.

    model         the student: a name that `herd models` lists, a .gguf file, a folder, or a finished run
    teacher       the teacher, in the same words
    data          way "stored": files of conversations or text that the teacher reads; "on-policy": prompts that the student answers
    way           "stored": the teacher reads the data once, its likeliest tokens are kept in `words`; "on-policy": it judges answers
    words         folder of what the teacher said; made if it is not there; empty: in the run's folder
    k             how many of the teacher's likeliest tokens are kept or compared; on-policy 0: all
    temperature   that both are softened by (stored)
    learn         what of the data is learned: "answers", "last" or "all" (stored)
    chat_format   how conversations become tokens, for models that do not say
    held_out      examples that are measured and not learned: a share below 1, or how many; 0: none
    max_tokens    the longest example; on-policy: the longest answer
    batch         examples (on-policy: prompts) of a step
    answers       answers to each prompt, on-policy
    pack          tokens that are computed together
    epochs        how often each example is seen; 0: loop.schedule.steps says how long the run is
    lr            the peak learning rate; 0: 0.0002 with LoRA and 0.00005 for all weights. loop.schedule.lr follows it
    backend       what the teacher, and answers, are run by: cpu, torch or reference
    targets       how the teacher counts
    student       what of the model is learned
    optimiser     how weights are changed
    loop          the schedule, and what is kept of the run
    """

    model: str
    teacher: str
    data: tuple[str, ...]
    way: str = "stored"
    words: str = ""
    k: int = 32
    temperature: float = 1.0
    learn: str = "answers"
    chat_format: str | None = None
    held_out: float = 0.05
    max_tokens: int = 1024
    batch: int = 8
    answers: int = 1
    pack: int = 2048
    epochs: float = 1.0
    lr: float = 0.0
    backend: str = "cpu"
    targets: SoftTargets = field(default_factory=SoftTargets)
    student: StudentSettings = field(default_factory=StudentSettings)
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(weight_decay=0.0, beta2=0.999))
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        need(len(self.data) > 0, "data", self.data, "files or folders")
        need(self.way in WAYS, "way", self.way, " or ".join(WAYS))
        need(self.k >= (self.way == "stored"), "k", self.k, "a whole number, 1 or more (on-policy: 0 or more)")
        need(0 < self.temperature <= 100, "temperature", self.temperature, "a number above 0, up to 100")
        for name in ("held_out", "epochs", "lr"):
            value = getattr(self, name)
            need(math.isfinite(value) and value >= 0, name, value, "a number, 0 or more")
        for name in ("batch", "answers", "pack"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "a whole number, 1 or more")
        need(self.max_tokens >= 2, "max_tokens", self.max_tokens, "a whole number, 2 or more")
        if self.way == "on-policy":
            unused = {"temperature": 1.0, "words": "", "learn": "answers"}
            for name, value in unused.items():
                need(getattr(self, name) == value, name, getattr(self, name), f"{value!r} on-policy, where it says nothing")
            targets = self.targets
            need(
                (targets.start, targets.end) == (0.5, 0.5), "targets.start", targets.start, "nothing on-policy: there are soft targets only"
            )
        steps, rate = self.loop.schedule.steps, self.loop.schedule.lr
        need(not self.epochs or steps == Schedule().steps, "loop.schedule.steps", steps, "nothing where epochs say it; or set epochs = 0")
        need(rate in (Schedule().lr, self.peak), "loop.schedule.lr", rate, f"nothing: lr says it, which is {self.peak}")

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return self.lr or LR[self.student.method]

    def resolved(self, count: int) -> DistillSettings:
        """With numbers in place of what follows from others, for `count` examples to learn from."""
        return replace(self, epochs=0.0, lr=self.peak, loop=run_length(self.loop, self.epochs, self.batch, self.peak, count))
