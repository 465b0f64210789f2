"""What preference optimisation does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from types import MappingProxyType
from typing import ClassVar

from herd.records import dataclass
from herd.training.settings.reading import need, need_positive
from herd.training.settings.student import StudentSettings, low_rank
from herd.training.settings.tuning import EpochSettings

METHODS = ("dpo", "simpo", "kto", "orpo")
OF = {
    "nll": ("dpo",),
    "margin": ("dpo",),
    "label_smoothing": ("dpo", "simpo"),
    "gamma": ("simpo",),
    "desirable": ("kto",),
    "undesirable": ("kto",),
}
"""Which methods a number is of, where it is not of all."""
BETA = {"dpo": 0.1, "simpo": 2.0, "kto": 0.1, "orpo": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceLoss:
    """Which loss, and its numbers. Formulas and papers: training/signals/losses.py.

    method           "dpo", "simpo", "kto" or "orpo"
    beta             how firmly the model is held to where it started (dpo, kto), or how much a difference counts (simpo), or the weight
                     of the odds (orpo); 0: 0.1, of simpo 2.0
    nll              weight of the chosen answer's own loss beside that of dpo; Llama 3 took 0.2
    formatting       whether the control tokens of answers count too; Llama 3 left them out
    label_smoothing  share of pairs that may be the wrong way round, of dpo and simpo
    margin           of dpo: how much the `margin` of a record counts, by which its chosen answer has to be ahead; 0: not at all
    gamma            of simpo: by how much a chosen answer has to be better
    desirable        of kto: weight of good answers
    undesirable      of kto: weight of bad answers
    """

    method: str = "dpo"
    beta: float = 0.0
    nll: float = 0.2
    formatting: bool = False
    label_smoothing: float = 0.0
    margin: float = 0.0
    gamma: float = 0.5
    desirable: float = 1.0
    undesirable: float = 1.0

    def __post_init__(self) -> None:
        need(self.method in METHODS, "method", self.method, " or ".join(METHODS))
        need_positive(self, "beta", "nll", "margin", "gamma", "desirable", "undesirable")
        need(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "a share below 0.5")
        for each in fields(PreferenceLoss):
            value, methods = getattr(self, each.name), OF.get(each.name, METHODS)
            expected = f"nothing with the method {self.method}: it is of {' and '.join(methods)}"
            need(self.method in methods or value == each.default, each.name, value, expected)

    @property
    def strength(self) -> float:
        """`beta`, or what the method has without one."""
        return self.beta or BETA[self.method]

    @property
    def needs_reference(self) -> bool:
        """Whether the model is compared with what it was."""
        return self.method in ("dpo", "kto")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings(EpochSettings):
    """Preference optimisation: a model learns which of two answers is better, or which single answers are good.

    data          files or folders of pairs (prompt, chosen, rejected), or for kto of judged answers (prompt, completion, label)
    max_tokens    the longest answer with its prompt; longer ones are dropped
    batch         pairs (for kto: answers) of a step
    lr            the peak learning rate; 0: 0.00005 with LoRA and 0.000001 for all weights. loop.schedule.lr follows it
    loss          which loss, and its numbers
    """

    RATES: ClassVar[Mapping[str, float]] = MappingProxyType({"lora": 5e-5, "full": 1e-6})

    loss: PreferenceLoss = field(default_factory=PreferenceLoss)
    student: StudentSettings = field(default_factory=low_rank)

    def __post_init__(self) -> None:
        EpochSettings.__post_init__(self)
        need(self.loss.method != "kto" or self.batch > 1, "batch", self.batch, "2 or more with kto, which compares answers with each other")
