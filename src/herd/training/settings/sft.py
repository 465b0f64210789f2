"""What supervised fine-tuning does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from herd.records import dataclass
from herd.training.settings.reading import need, need_least
from herd.training.settings.tuning import HELD_OUT, EpochSettings

LEARN = ("answers", "last", "all")
TOO_LONG = ("drop", "cut", "split")


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings(EpochSettings):
    """Supervised fine-tuning: a model learns the answers of conversations.

    data          files or folders of conversations, prompts with completions, or text
    held_out_data  files or folders whose examples are measured and not learned, in place of a share of `data`: held_out says nothing then
    shape         how records are written, where that is not to be detected: messages, sharegpt, alpaca, pairs, text
    learn         what carries loss: "answers" of the assistant, the "last" of them, or "all"
    too_long      what becomes of a longer example than max_tokens: "drop" it, "cut" its end off, or "split" a text into several
    pack          tokens that are computed together: documents are packed up to there, and the gradients of several packs are added up
    lr            the peak learning rate; 0: 0.001 with LoRA and 0.00005 for all weights. loop.schedule.lr follows it
    samples       held-out prompts that the model answers before and after; 0: none
    """

    RATES: ClassVar[Mapping[str, float]] = MappingProxyType({"lora": 1e-3, "full": 5e-5})

    held_out_data: tuple[str, ...] = ()
    shape: str | None = None
    learn: str = "answers"
    too_long: str = "drop"
    pack: int = 1024
    epochs: float = 3.0
    samples: int = 3

    def __post_init__(self) -> None:
        EpochSettings.__post_init__(self)
        need(self.learn in LEARN, "learn", self.learn, " or ".join(LEARN))
        need(self.too_long in TOO_LONG, "too_long", self.too_long, " or ".join(TOO_LONG))
        need_least(self, 0, "samples")
        is_one = not self.held_out_data or self.held_out in (0, HELD_OUT)
        need(is_one, "held_out", self.held_out, "nothing beside held_out_data, whose examples are measured instead")
