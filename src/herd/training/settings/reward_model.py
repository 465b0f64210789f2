"""What the training of a reward model does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import ClassVar

from herd.records import dataclass
from herd.training.settings.reading import need_positive
from herd.training.settings.student import StudentSettings, low_rank
from herd.training.settings.tuning import EpochSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelSettings(EpochSettings):
    """A reward model: a language model that learns to tell the better of two answers by one number for each.

    data          files or folders of pairs (prompt, chosen, rejected)
    max_tokens    the longest answer with its prompt; longer ones are dropped
    lr            the peak learning rate; 0: 0.0001 with LoRA and 0.000005 for all weights. loop.schedule.lr follows it
    margin        how much the `margin` of a record counts, by which its chosen answer has to be ahead (Llama 2); 0: not at all (Llama 3)
    centre        how firmly rewards are held near zero; only their differences are learned
    """

    RATES: ClassVar[Mapping[str, float]] = MappingProxyType({"lora": 1e-4, "full": 5e-6})

    margin: float = 0.0
    centre: float = 0.01
    student: StudentSettings = field(default_factory=low_rank)

    def __post_init__(self) -> None:
        EpochSettings.__post_init__(self)
        need_positive(self, "margin", "centre")
