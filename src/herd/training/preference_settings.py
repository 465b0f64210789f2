"""What preference optimisation does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

import math
from dataclasses import field, replace

from herd.records import dataclass
from herd.training.loop_settings import LoopSettings
from herd.training.optimiser_settings import OptimiserSettings
from herd.training.schedules import Schedule
from herd.training.settings import need
from herd.training.student_settings import StudentSettings

METHODS = ("dpo", "simpo", "kto", "orpo")
LR = {"lora": 5e-5, "full": 1e-6}
BETA = {"dpo": 0.1, "simpo": 2.0, "kto": 0.1, "orpo": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceLoss:
    """Which loss, and its numbers. Formulas and papers: training/losses.py.

    method           "dpo", "simpo", "kto" or "orpo"
    beta             how firmly the model is held to where it started (dpo, kto), or how much a difference counts (simpo), or the weight
                     of the odds (orpo); 0: 0.1, of simpo 2.0
    nll              weight of the chosen answer's own loss beside that of dpo; Llama 3 took 0.2
    formatting       whether the control tokens of answers count too; Llama 3 left them out
    label_smoothing  share of pairs that may be the wrong way round, of dpo and simpo
    gamma            of simpo: by how much a chosen answer has to be better
    desirable        of kto: weight of good answers
    undesirable      of kto: weight of bad answers
    """

    method: str = "dpo"
    beta: float = 0.0
    nll: float = 0.2
    formatting: bool = False
    label_smoothing: float = 0.0
    gamma: float = 0.5
    desirable: float = 1.0
    undesirable: float = 1.0

    def __post_init__(self) -> None:
        need(self.method in METHODS, "method", self.method, " or ".join(METHODS))
        for name in ("beta", "nll", "gamma", "desirable", "undesirable"):
            value = getattr(self, name)
            need(math.isfinite(value) and value >= 0, name, value, "a number, 0 or more")
        need(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "a share below 0.5")

    @property
    def strength(self) -> float:
        """`beta`, or what the method has without one."""
        return self.beta or BETA[self.method]

    @property
    def needs_reference(self) -> bool:
        """Whether the model is compared with what it was."""
        return self.method in ("dpo", "kto")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings:
    """Preference optimisation: a model learns which of two answers is better, or which single answers are good.

    model         what is tuned: a name that `herd models` lists, a .gguf file, a folder, or a finished run
    data          files or folders of pairs (prompt, chosen, rejected), or for kto of judged answers (prompt, completion, label)
    chat_format   how conversations become tokens, for models that do not say
    held_out      pairs that are measured and not learned: a share below 1, or how many; 0: none
    max_tokens    the longest answer with its prompt; longer ones are dropped
    batch         pairs (for kto: answers) of a step
    pack          tokens that are computed together
    epochs        how often each pair is seen; 0: loop.schedule.steps says how long the run is
    lr            the peak learning rate; 0: 0.00005 with LoRA and 0.000001 for all weights. loop.schedule.lr follows it
    loss          which loss, and its numbers
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
    loss: PreferenceLoss = field(default_factory=PreferenceLoss)
    student: StudentSettings = field(default_factory=lambda: StudentSettings(method="lora"))
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(weight_decay=0.0, beta2=0.999))
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        need(len(self.data) > 0, "data", self.data, "files or folders")
        need(self.loss.method != "kto" or self.batch > 1, "batch", self.batch, "2 or more with kto, which compares answers with each other")
        check_length(self, self.peak)

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return self.lr or LR[self.student.method]

    def resolved(self, count: int) -> PreferenceSettings:
        """With numbers in place of what follows from others, for `count` pairs to learn from."""
        return replace(self, epochs=0.0, lr=self.peak, loop=run_length(self.loop, self.epochs, self.batch, self.peak, count))


def check_length(settings: object, peak: float) -> None:
    """`UsageError` for numbers that recipes over examples have in common and that cannot be."""
    for name in ("held_out", "epochs", "lr"):
        value = getattr(settings, name)
        need(math.isfinite(value) and value >= 0, name, value, "a number, 0 or more")
    for name in ("batch", "pack"):
        need(getattr(settings, name) >= 1, name, getattr(settings, name), "a whole number, 1 or more")
    need(settings.max_tokens >= 2, "max_tokens", settings.max_tokens, "a whole number, 2 or more")  # type: ignore[attr-defined]
    schedule = settings.loop.schedule  # type: ignore[attr-defined]
    expected = "nothing where epochs say it; or set epochs = 0"
    need(not settings.epochs or schedule.steps == Schedule().steps, "loop.schedule.steps", schedule.steps, expected)  # type: ignore[attr-defined]
    need(schedule.lr in (Schedule().lr, peak), "loop.schedule.lr", schedule.lr, f"nothing: lr says it, which is {peak}")


def run_length(loop: LoopSettings, epochs: float, batch: int, peak: float, count: int) -> LoopSettings:
    """The loop with its number of steps and its learning rate."""
    steps = max(1, math.ceil(epochs * count / batch)) if epochs else loop.schedule.steps
    return replace(loop, schedule=replace(loop.schedule, steps=steps, lr=peak))
