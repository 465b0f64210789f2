"""What distillation does. Free of torch, so that settings are read quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import ClassVar

from herd.records import dataclass
from herd.training.settings.reading import need, need_backend, need_least
from herd.training.settings.tuning import EpochSettings

DIVERGENCES = ("forward", "reverse", "js")
SHAPES = ("constant", "linear", "cosine")
WAYS = ("stored", "on-policy")
MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftTargets:
    """How the teacher counts. Formulas: training/signals/divergences.py.

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
class DistillSettings(EpochSettings):
    """Distillation: a model learns what a larger one of the same vocabulary thinks.

    model         the student: a name that `herd models` lists, a .gguf file, a folder, or a finished run
    teacher       the teacher, in the same words; nothing where `words` alone are learned
    data          way "stored": files of conversations or text that the teacher reads; "on-policy": prompts that the student answers
    way           "stored": the teacher reads the data once, its likeliest tokens are kept in `words`; "on-policy": it judges answers
    words         folder of what the teacher said: made if it is not there, and else refused if it was made of other data or by other
                  settings than these; without `data` and `teacher` what is in it is learned as it is. Empty: the run's folder with
                  -teacher behind its name, beside it
    k             how many of the teacher's likeliest tokens are kept or compared; on-policy 0: all
    temperature   that both are softened by (stored)
    learn         what of the data is learned: "answers", "last" or "all" (stored)
    max_tokens    the longest example; on-policy: the longest answer
    batch         examples (on-policy: prompts) of a step
    answers       answers to each prompt, on-policy
    lr            the peak learning rate; 0: 0.0002 with LoRA and 0.00005 for all weights. loop.schedule.lr follows it
    backend       what the teacher, and answers, are run by: cpu, torch or reference
    targets       how the teacher counts
    """

    RATES: ClassVar[Mapping[str, float]] = MappingProxyType({"lora": 2e-4, "full": 5e-5})

    data: tuple[str, ...] = ()
    teacher: str = ""
    way: str = "stored"
    words: str = ""
    k: int = 32
    temperature: float = 1.0
    learn: str = "answers"
    max_tokens: int = MAX_TOKENS
    answers: int = 1
    pack: int = 2048
    backend: str = "cpu"
    targets: SoftTargets = field(default_factory=SoftTargets)

    def __post_init__(self) -> None:
        EpochSettings.__post_init__(self)
        need(self.way in WAYS, "way", self.way, " or ".join(WAYS))
        need(self.k >= (self.way == "stored"), "k", self.k, "a whole number, 1 or more (on-policy: 0 or more)")
        need(0 < self.temperature <= 100, "temperature", self.temperature, "a number above 0, up to 100")
        need_least(self, 1, "answers")
        need_backend(self.backend)
        need(bool(self.teacher) == bool(self.data), "teacher", self.teacher, "a model where there is data; words alone have theirs")
        is_js = self.targets.divergence == "js"
        need(is_js or self.targets.beta == SoftTargets().beta, "targets.beta", self.targets.beta, "nothing but with the divergence js")
        if self.way == "stored":
            need(self.answers == 1, "answers", self.answers, "1 with the way stored, where the student answers nothing")
        if not self.data:
            for name, value in {"learn": "answers", "max_tokens": MAX_TOKENS, "backend": "cpu"}.items():
                need(getattr(self, name) == value, name, getattr(self, name), "nothing with words alone: a teacher has read its examples")
        if self.way == "on-policy":
            unused = {"temperature": 1.0, "words": "", "learn": "answers"}
            for name, value in unused.items():
                need(getattr(self, name) == value, name, getattr(self, name), f"{value!r} on-policy, where it says nothing")
            weights = (self.targets.start, self.targets.end)
            need(weights == (0.5, 0.5), "targets.start", self.targets.start, "nothing on-policy: there are soft targets only")

    @property
    def needs_data(self) -> bool:
        return self.way != "stored" or not self.words
