"""What every recipe of `herd tune` is told. Free of torch, so that settings are read quickly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

from herd.records import dataclass
from herd.training.schedules import Schedule
from herd.training.settings.loop import LoopSettings
from herd.training.settings.optimiser import OptimiserSettings
from herd.training.settings.parallel import ParallelSettings, check_parallel
from herd.training.settings.reading import need, need_least, need_positive
from herd.training.settings.student import StudentSettings

HELD_OUT = 0.05
"""Which share is measured, where nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningSettings:
    """A run that begins with a model and somebody's data.

    model         what is tuned: a name that `herd models` lists, a .gguf file, a folder, or a finished run
    data          files or folders to learn from
    chat_format   how conversations become tokens, for models that do not say
    held_out      examples that are measured and not learned: a share below 1, or how many; 0: none
    pack          tokens that are computed together
    lr            the peak learning rate; 0: the recipe's own, one with LoRA and another for all weights. loop.schedule.lr follows it
    student       what of the model is learned
    optimiser     how weights are changed
    parallel      processes that hold one model together
    loop          the schedule, and what is kept of the run
    """

    RATES: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """The peak learning rate of each way to learn, where none is asked for."""

    model: str
    data: tuple[str, ...]
    chat_format: str | None = None
    held_out: float = HELD_OUT
    pack: int = 4096
    lr: float = 0.0
    student: StudentSettings = field(default_factory=StudentSettings)
    optimiser: OptimiserSettings = field(default_factory=lambda: OptimiserSettings(weight_decay=0.0, beta2=0.999))
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        check_parallel(self.parallel, self.loop, self.optimiser)
        dropout = self.student.lora.dropout
        need(not dropout or self.parallel.context == 1, "lora.dropout", dropout, "0 with parallel.context, whose processes draw apart")
        need(len(self.data) > 0 or not self.needs_data, "data", self.data, "files or folders")
        need_positive(self, "held_out", "lr")
        need(self.held_out < 1 or self.held_out % 1 == 0, "held_out", self.held_out, "a share below 1, or a whole number")
        need_least(self, 1, "pack")
        rate = self.loop.schedule.lr
        need(rate in (Schedule().lr, self.peak), "loop.schedule.lr", rate, f"nothing: lr says it, which is {self.peak}")

    @property
    def needs_data(self) -> bool:
        """Whether there is nothing to learn from without `data`."""
        return True

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return self.lr or self.RATES[self.student.method]

    def _for_steps(self, steps: int, held_out: int, **more: Any) -> Self:
        every = self.loop.evaluate_every or (steps if held_out else 0)
        schedule = replace(self.loop.schedule, steps=steps, lr=self.peak)
        return replace(self, lr=self.peak, loop=replace(self.loop, schedule=schedule, evaluate_every=every), **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSettings(TuningSettings):
    """A run over examples that are there before it begins.

    max_tokens    the longest example
    batch         examples of a step
    epochs        how often each example is seen; 0: loop.schedule.steps says how long the run is
    """

    max_tokens: int = 2048
    batch: int = 8
    epochs: float = 1.0

    def __post_init__(self) -> None:
        TuningSettings.__post_init__(self)
        need_positive(self, "epochs")
        need_least(self, 1, "batch")
        need_least(self, 2, "max_tokens")
        steps = self.loop.schedule.steps
        need(not self.epochs or steps == Schedule().steps, "loop.schedule.steps", steps, "nothing where epochs say it; or set epochs = 0")

    def resolved(self, learned: int, held_out: int = 0) -> Self:
        """With numbers in place of what follows from others, for so many examples to learn from and to measure. What is resolved stays
        as it is. Where nothing else was asked for, what is held out is measured before the first step and after the last."""
        steps = max(1, math.ceil(self.epochs * learned / self.batch)) if self.epochs else self.loop.schedule.steps
        return self._for_steps(steps, held_out, epochs=0.0)
