"""What every recipe's run has in common: how long it is, how steps are guarded, and what is kept of it."""

from __future__ import annotations

from dataclasses import field

from herd.records import dataclass
from herd.training.schedules import Schedule, check_schedule
from herd.training.settings.reading import need, need_least, need_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """The loop that every recipe is run by.

    schedule        the learning rate, and with it the number of steps
    seed            what everything that is drawn comes from
    clip            longest gradient, as a norm over all parameters; a longer one is shortened; 0: none is
    max_bad_steps   steps in a row that may be left out because their loss or gradient is no number; one more ends the run
    evaluate_every  steps between two evaluations; one comes before the first step and one after the last; 0: none
    save_every      steps between two checkpoints; one comes after the last step in any case; 0: no others
    save_minutes    minutes after which a checkpoint is made, whatever the step; 0: that does not count
    keep_last       how many of the newest checkpoints are kept
    keep_best       whether the checkpoint whose evaluation was best is kept as well, and made when it happens
    best            held-out figure that says which is best: the lowest is, or with a minus before its name the highest
    divided         among several processes: whether each keeps only its part of the learned weights, gradients and moments
    tensorboard     whether curves are also written for TensorBoard, to the folder `tensorboard` of the run
    """

    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    clip: float = 1.0
    max_bad_steps: int = 3
    evaluate_every: int = 0
    save_every: int = 0
    save_minutes: float = 10.0
    keep_last: int = 2
    keep_best: bool = False
    best: str = "loss"
    divided: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        need(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2^63 - 1")
        need_positive(self, "clip", "save_minutes")
        need_least(self, 0, "max_bad_steps", "evaluate_every", "save_every")
        need_least(self, 1, "keep_last")
        need(bool(self.best.lstrip("-")), "best", self.best, "the name of a held-out figure")
        need(not self.keep_best or self.evaluate_every > 0, "keep_best", self.keep_best, "false where evaluate_every is 0")

    @property
    def steps(self) -> int:
        """How many steps the run has."""
        return self.schedule.steps


PARALLEL = ("parallel.tensor", "parallel.expert", "parallel.context")
HARMLESS = ("divided", *PARALLEL, "save_every", "save_minutes", "keep_last", "keep_best", "best", "tensorboard", "max_bad_steps")
"""Ends of the names of settings that a resumed run may change freely: nothing that is learned depends on them."""
