"""What a run's answers are judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from herd.errors import UsageError
from herd.records import dataclass
from herd.training.settings.reading import need_above

Kind = Literal["number", "text", "tests", "schema", "length", "pattern", "function", "model"]
CHECKED: Mapping[Kind, str] = MappingProxyType({"number": "answer", "text": "answer", "tests": "tests", "schema": "schema"})
"""Kinds that need something in the record to check by, and its name there."""
GUARDS = frozenset(("network", "processes", "files"))
"""What the sandbox can keep a program from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """One reward of a run.

    kind       what is checked: number, text, tests, schema, length, pattern or function; or model, which judges
    weight     what it is multiplied by
    pattern    regular expression, of kind pattern; of kind text, what of the answer is compared: its first group
    function   file and name of a Python function, as path/to/file.py:name
    model      of kind model: the folder of a finished run of herd tune reward
    least      of kind length: the shortest answer that has the full reward
    most       of kind length: the longest answer that has the full reward
    unit       what length counts: tokens, words or characters
    required   guards of the sandbox that must hold, of kind tests
    seconds    how long tests may run
    """

    kind: Kind
    weight: float = 1.0
    pattern: str = ""
    function: str = ""
    model: str = ""
    least: int = 0
    most: int = 1_000_000
    unit: Literal["tokens", "words", "characters"] = "words"
    required: tuple[str, ...] = ("network", "processes", "files")
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise UsageError(f"A reward's weight is {self.weight}; it must be finite.")
        need_above(self, 0, "seconds")
        if self.kind == "function" and ":" not in self.function:
            raise UsageError(f"A reward's function is {self.function!r:.80}; expected path/to/file.py:name.")
        if (self.kind == "model") != bool(self.model):
            raise UsageError(f"A reward of kind {self.kind} has model {self.model!r:.80}; kind model alone names a folder there.")
        if self.kind == "pattern" and not self.pattern:
            raise UsageError("A reward of kind pattern needs a pattern.")
        if not 0 <= self.least <= self.most:
            raise UsageError(f"A reward's length goes from {self.least} to {self.most}; expected 0 <= least <= most.")
        if strange := set(self.required) - GUARDS:
            raise UsageError(f"The sandbox has no guard {min(strange)!r:.40}; there are {', '.join(sorted(GUARDS))}.")
