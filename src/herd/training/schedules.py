"""The learning rate of each step: a pure function of the step's number, so that a resumed run needs no more than that number.

    warm-up      from 1 / (warmup + 1) of the peak to the peak, in equal parts; no step is wasted at 0
    constant     the peak
    linear       a straight line from the peak to the final rate
    cosine       half a cosine between the same two (arXiv 1608.03983), as the Llamas were trained
    wsd          the peak until the last `decay` steps, then down to the final rate (warm-up, stable, decay: arXiv 2404.06395);
                 `shape` says how: "sqrt" falls with 1 - sqrt(share), which arXiv 2405.18392 found best

Steps count from 0. The first step after the warm-up has the peak, and the step after the last one would have the final rate.
"""

from __future__ import annotations

import math

from herd.errors import UsageError, did_you_mean
from herd.records import dataclass

NAMES = ("cosine", "wsd", "linear", "constant")
SHAPES = ("sqrt", "linear", "cosine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A learning rate over `steps` steps.

    name     "cosine", "wsd", "linear" or "constant"
    lr       the peak
    steps    of the whole run; a later step has the final rate
    warmup   steps before the peak
    final    what is left at the end, as a share of the peak
    decay    of "wsd": how many of the last steps fall; None: a fifth of all, rounded up
    shape    of "wsd": how they fall: "sqrt", "linear" or "cosine"
    """

    name: str = "cosine"
    lr: float = 1e-3
    steps: int = 1000
    warmup: int = 0
    final: float = 0.0
    decay: int | None = None
    shape: str = "sqrt"

    def __post_init__(self) -> None:
        check_schedule(self)

    @property
    def decay_steps(self) -> int:
        """How many of the last steps of "wsd" fall."""
        return -(-self.steps // 5) if self.decay is None else self.decay


def check_schedule(schedule: Schedule) -> None:
    """`UsageError` for a schedule that cannot be, with what is wrong."""
    if schedule.name not in NAMES:
        raise UsageError(f"There is no schedule {schedule.name!r}: {', '.join(NAMES)}{did_you_mean(schedule.name, NAMES)}")
    if schedule.shape not in SHAPES:
        raise UsageError(f"A schedule cannot fall by {schedule.shape!r}: {', '.join(SHAPES)}{did_you_mean(schedule.shape, SHAPES)}")
    if not (math.isfinite(schedule.lr) and schedule.lr >= 0):
        raise UsageError(f"The learning rate is {schedule.lr}; it must be a finite number, 0 or more.")
    if schedule.steps < 1:
        raise UsageError(f"The schedule has {schedule.steps} steps; it needs at least 1.")
    if not 0 <= schedule.warmup <= schedule.steps:
        raise UsageError(f"The warm-up has {schedule.warmup} steps; the whole run has {schedule.steps}. Make it 0 to {schedule.steps}.")
    if not 0 <= schedule.final <= 1:
        raise UsageError(f"The final learning rate is {schedule.final} of the peak; it must be a share from 0 to 1.")
    if schedule.name == "wsd" and not 0 <= schedule.decay_steps <= schedule.steps - schedule.warmup:
        raise UsageError(
            f"The decay has {schedule.decay_steps} steps; {schedule.warmup} of {schedule.steps} are warm-up, so it can have 0 to "
            f"{schedule.steps - schedule.warmup}."
        )
    if schedule.decay is not None and schedule.name != "wsd":
        raise UsageError(f'A number of decay steps ({schedule.decay}) belongs to the schedule "wsd"; this one is {schedule.name!r}.')


def lr_at(schedule: Schedule, step: int) -> float:
    """The learning rate of step `step`, counted from 0."""
    if step < schedule.warmup:
        return schedule.lr * (step + 1) / (schedule.warmup + 1)
    match schedule.name:
        case "constant":
            left = 1.0
        case "wsd":
            left = _fallen(schedule.shape, step, schedule.steps - schedule.decay_steps, schedule.steps)
        case name:
            left = _fallen(name, step, schedule.warmup, schedule.steps)
    return schedule.lr * (schedule.final + (1 - schedule.final) * left)


def _fallen(shape: str, step: int, first: int, last: int) -> float:
    """What is left of 1 at `step` on the way down from `first` (1) to `last` (0)."""
    if step >= last:
        return 0.0
    if step <= first:
        return 1.0
    share = (step - first) / (last - first)
    match shape:
        case "linear":
            return 1 - share
        case "cosine":
            return (1 + math.cos(math.pi * share)) / 2
        case _:
            return 1 - math.sqrt(share)
