"""Reads the keys of a config: what is required, what is assumed and what is harmless is code, and nothing is left over.

Each question records a problem instead of raising it; `finish` raises one `FileProblem` with all of them and with every key
that nobody asked for. Until then a failed question answers with a value that is safe to calculate with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from herd.checkpoints.account import refuse
from herd.checkpoints.checkpoint import Fact

# The largest value of each kind of number, with room above any published model.
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 14
MAX_HEADS = 1 << 16
MAX_VOCABULARY = 1 << 24
MAX_CONTEXT = 1 << 30


class ConfigReader:
    """`values` by key; `where` is how messages call their file; `facts` collects what was read."""

    def __init__(self, values: Mapping[str, Any], where: str, facts: dict[str, Fact] | None = None, prefix: str = "") -> None:
        self._values = values
        self._where = where
        self._unread = dict.fromkeys(values)
        self.prefix = prefix
        self.facts: dict[str, Fact] = {} if facts is None else facts
        self.problems: list[str] = []

    def has(self, key: str) -> bool:
        """Whether the key is there with a value; JSON's null counts as absent."""
        return key in self._values and self._values[key] is not None

    def raw(self, key: str) -> Any:
        """The value as it is, or None; the caller checks it."""
        self._unread.pop(key, None)
        return self._values.get(key)

    def unread(self) -> list[str]:
        """The keys that nobody has asked for yet."""
        return list(self._unread)

    def within(self, key: str, values: Mapping[str, Any]) -> ConfigReader:
        """A reader of the object under `key`, whose problems are ours."""
        inner = ConfigReader(values, self._where, self.facts, prefix=f"{self.prefix}{key}.")
        inner.problems = self.problems
        return inner

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def note(self, fact: str, value: object, key: str) -> None:
        """Record where a fact came from."""
        self.facts[fact] = Fact(value, f"{self.prefix}{key} in {self._where}")

    def integer(self, key: str, fact: str = "", *, lowest: int = 1, highest: int, default: int | None = None) -> int:
        """A whole number in [lowest, highest]; required unless there is a default."""
        value = self._get(key, default, "a whole number")
        if value is None:
            return lowest
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            self.problem(f"{self.prefix}{key} is {shown(value)}; allowed is a whole number from {lowest} to {highest}")
            return lowest
        self._known(fact, value, key)
        return value

    def number(self, key: str, fact: str = "", *, lowest: float, highest: float, default: float | None = None) -> float:
        """A finite number in [lowest, highest]; required unless there is a default."""
        value = self._get(key, default, "a number")
        if value is None:
            return lowest
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or not lowest <= value <= highest:
            self.problem(f"{self.prefix}{key} is {shown(value)}; allowed is a number from {lowest:g} to {highest:g}")
            return lowest
        self._known(fact, value, key)
        return float(value)

    def boolean(self, key: str, fact: str = "", *, default: bool) -> bool:
        value = self._get(key, default, "true or false")
        if not isinstance(value, bool):
            self.problem(f"{self.prefix}{key} is {shown(value)}; allowed is true or false")
            return default
        self._known(fact, value, key)
        return value

    def text(self, key: str, fact: str = "", *, default: str | None = None) -> str:
        value = self._get(key, default, "a text")
        if value is None:
            return ""
        if not isinstance(value, str):
            self.problem(f"{self.prefix}{key} is {shown(value)}; allowed is a text")
            return ""
        self._known(fact, value, key)
        return value

    def uniform(self, key: str, fact: str = "", *, highest: int, count: int, default: int | None = None) -> int:
        """A whole number from 1, or a list of `count` equal ones: a per-layer value that must be the same in all layers."""
        value = self._values.get(key)
        if not isinstance(value, Sequence) or isinstance(value, str):
            return self.integer(key, fact, highest=highest, default=default)
        self._unread.pop(key, None)
        same = len(value) == count and all(isinstance(each, int) and each == value[0] for each in value)
        if not same or not 1 <= value[0] <= highest:
            self.problem(
                f"{self.prefix}{key} is {shown(value)}; allowed is one whole number from 1 to {highest}, or a list of {count} equal ones: "
                "layers with different numbers of heads are not supported"
            )
            return 1
        self._known(fact, value[0], key)
        return int(value[0])

    def expect(self, key: str, *allowed: object, because: str) -> None:
        """If the key is there, it must have one of these values, or be absent if there are none; null counts as absent."""
        value = self.raw(key)
        if value is not None and not any(_same(value, each) for each in allowed):
            wanted = f"allowed is {' or '.join(map(shown, allowed))}" if allowed else "it is allowed to be absent only"
            self.problem(f"{self.prefix}{key} is {shown(value)}; {wanted}: {because}")

    def finish(self, conclusion: str, harmless: Mapping[str, str] = {}, harmless_prefixes: Iterable[str] = ()) -> None:
        """Refuse if there was a problem or if a key was not read. `harmless` maps keys to why they may be ignored."""
        self.settle(harmless, harmless_prefixes)
        if self.problems:
            refuse(self._where, self.problems, conclusion)

    def settle(self, harmless: Mapping[str, str] = {}, harmless_prefixes: Iterable[str] = ()) -> None:
        """Record a problem for each key that was not read; what `finish` does first, and all that an object within needs."""
        prefixes = tuple(harmless_prefixes)
        left = [key for key in self._unread if key not in harmless and not (prefixes and key.startswith(prefixes))]
        self.problems += [f"{shown(self.prefix + key)[1:-1]} is not a key that is known here ({shown(self._values[key])})" for key in left]

    def _get(self, key: str, default: Any, what: str) -> Any:
        value = self.raw(key)
        if value is None:
            if default is None:
                self.problem(f"{self.prefix}{key} is missing; it must be {what}")
            return default
        return value

    def _known(self, fact: str, value: object, key: str) -> None:
        if not fact:
            return
        source = f"{self.prefix}{key} in {self._where}" if self.has(key) else f"assumed: {self._where} has no {self.prefix}{key}"
        self.facts[fact] = Fact(value, source)


def shown(value: object) -> str:
    """A value for a message: one line, cut, nothing in it can move a cursor."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = list(value[:12])
    text = ascii(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 80 else text[:77] + "..."


def _same(value: object, allowed: object) -> bool:
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
