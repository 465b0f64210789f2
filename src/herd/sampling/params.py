"""What a caller may ask of sampling, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields

from herd.errors import UsageError
from herd.records import dataclass

MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen from the model's logits.

    temperature           0 takes the most likely token; otherwise logits are divided by it
    top_k                 only the k most likely tokens; 0 keeps all
    top_p                 the smallest set of most likely tokens whose probability reaches p (arXiv 1904.09751)
    min_p                 only tokens at least this share of the most likely one's probability (arXiv 2407.01082)
    repetition_penalty    divides positive, multiplies negative logits of every token in prompt or answer (arXiv 1909.05858)
    presence_penalty      subtracted once from the logit of every token of the answer so far
    frequency_penalty     subtracted as often as the token occurs in the answer so far
    logit_bias            added to the logits of these token ids
    seed                  None: drawn once and returned with the answer
    logprobs              how many alternatives to report per token besides the chosen one
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            if not _is_number(getattr(self, name), low, high):
                raise UsageError(f"{name} is {_shown(getattr(self, name))}; it must be a number from {low} to {high}.")
        for name in ("top_k", "logprobs"):
            if not isinstance(getattr(self, name), int):
                raise UsageError(f"{name} is {_shown(getattr(self, name))}; it must be a whole number.")
        if self.seed is not None and not _is_whole(self.seed, 2**63):
            raise UsageError(f"seed is {_shown(self.seed)}; it must be a whole number from 0 to 2^63 - 1.")
        if not isinstance(self.logit_bias, Mapping):
            raise UsageError(f"logit_bias is {_shown(self.logit_bias)}; it must map token ids to numbers.")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise UsageError(f"logit_bias has {len(self.logit_bias)} entries; at most {MAX_LOGIT_BIAS} are allowed.")
        for token, bias in self.logit_bias.items():
            if not _is_whole(token, 2**31):
                raise UsageError(f"logit_bias names token {_shown(token)}; token ids are whole numbers from 0.")
            if not _is_number(bias, -100, 100):
                raise UsageError(f"logit_bias of token {token} is {_shown(bias)}; it must be from -100 to 100.")

    @property
    def uses_history(self) -> bool:
        """Whether the choice depends on which tokens came before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all parameters, for front ends that accept keywords."""
        return tuple(f.name for f in fields(cls))


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 100.0),
    ("top_k", 0, 2**31 - 1),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("presence_penalty", -100.0, 100.0),
    ("frequency_penalty", -100.0, 100.0),
    ("logprobs", 0, MAX_TOP_LOGPROBS),
)


def _is_number(value: object, low: float, high: float) -> bool:
    """NaN is no number: it compares as false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_whole(value: object, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _shown(value: object) -> str:
    """The value as written, cut; Python refuses to write very long integers."""
    try:
        return f"{value!r:.60}"
    except ValueError:
        return "a number of thousands of digits"
