"""What of a model is learned, and what it is computed in. Free of torch, so that settings are read quickly."""

from __future__ import annotations

from dataclasses import field, fields

from herd import dtypes
from herd.records import dataclass
from herd.training.settings.lora import Lora
from herd.training.settings.reading import need

METHODS = ("lora", "full")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSettings:
    """How a model learns.

    method      "lora": low-rank updates of matrices over a frozen model; "full": every weight
    lora        the updates
    base        block format that the frozen matrices are brought into before learning begins (QLoRA): q4_0, q4_k, iq4_nl, q8_0, ...;
                empty: as they are stored
    qat         learn for four bits: matrices are rounded to groups of 32 wherever they are used, and so is what they are multiplied
                with, to 8 bits a token, unless answers are drawn on the way. With "lora" the frozen model is rounded for good, as
                Llama 3.2 was made
    dtype       what is computed in: "float32", "bfloat16", or "auto": bfloat16 where the machine multiplies that faster
    device      "cpu", "cuda" or "cuda:1"
    recompute   keep nothing of what lies inside layers, and compute it again on the way back: slower, in far less memory
    """

    method: str = "full"
    lora: Lora = field(default_factory=Lora)
    base: str = ""
    qat: bool = False
    dtype: str = "auto"
    device: str = "cpu"
    recompute: bool = False

    def __post_init__(self) -> None:
        formats = tuple(dtype.name for dtype in dtypes.BLOCK)
        need(self.method in METHODS, "method", self.method, " or ".join(METHODS))
        need(self.base in ("", *formats), "base", self.base, f"nothing, or one of {', '.join(formats)}")
        need(self.dtype in DTYPES, "dtype", self.dtype, " or ".join(DTYPES))
        for each in fields(Lora):
            value = getattr(self.lora, each.name)
            is_so = self.method == "lora" or value == each.default
            need(is_so, f"lora.{each.name}", value, "nothing where every weight is learned; take method lora (--lora)")
        need(not self.base or self.method == "lora", "base", self.base, "nothing where every weight is learned; take method lora")
        need(not (self.base and self.qat), "base", self.base, "nothing with qat, which has a format of its own")


def low_rank() -> StudentSettings:
    """Low-rank updates: where recipes begin that would take a model far from what it was."""
    return StudentSettings(method="lora")
