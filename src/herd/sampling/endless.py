"""Languages that no answer can come to the end of, found before anything is held to them.

A schema may refer to itself in such a way that each instance needs a smaller one for ever, and a regular expression may ask for more
characters than anybody will write. Both compile; what is held to them never ends, or fails in the middle.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, final

REPETITIONS_MAX = 100_000_000
"""Characters that a regular expression may ask for, counted by its braces."""
ROUNDS = 64
_BRACES = re.compile(r"\{(\d{1,40})?(?:,(\d{1,40})?)?\}")
_NAMED = re.compile(r"\\[pPxuU]\{[^}]*\}")


def longest(pattern: str) -> int:
    """How many characters a regular expression asks for, if all of its braces are followed up to their upper ends."""
    levels: list[int] = []
    total = last = at = 0
    while at < len(pattern):
        character = pattern[at]
        braces = _BRACES.match(pattern, at) if character == "{" else None
        if braces is not None and (braces[1] or braces[2]):
            last *= max(1, int(braces[2] or braces[1]))
            at = braces.end()
            continue
        if character == ")" and levels:
            last, total = total + last, levels.pop()
            at += 1
            continue
        if character in "*+?|":
            at += 1
            continue
        total, last = total + last, 1
        if character == "(":
            levels.append(total)
            total = last = 0
        at = _after(pattern, at)
    return sum(levels) + total + last


def _after(pattern: str, at: int) -> int:
    """Where the next character, escape or class begins."""
    if pattern[at] == "\\":
        named = _NAMED.match(pattern, at)
        return at + 2 if named is None else named.end()
    if pattern[at] != "[":
        return at + 1
    at += 2 if pattern.startswith("[^", at) else 1
    at += pattern.startswith("]", at)
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1


def has_instance(schema: object) -> bool:
    """Whether there is a finite value that a JSON schema may allow. It is False only where each value would need another one inside itself
    for ever; contradictions of other kinds are for the compiler to find."""
    try:
        return _Instances(schema).found()
    except RecursionError:
        return True  # nested too deeply for this; the compiler refuses that


@final
class _Instances:
    """What is known so far of each place that something refers to: whether it has a finite value."""

    def __init__(self, schema: object) -> None:
        self._schema = schema
        self._known: dict[str, bool] = {}
        self._seen: set[str] = set()

    def found(self) -> bool:
        for _ in range(ROUNDS):
            before = dict(self._known)
            found = self._ends(self._schema)
            for place in list(self._seen):
                self._known[place] = self._known.get(place, False) or self._ends(_resolved(self._schema, place))
            if self._known == before:
                return found
        return True

    def _ends(self, node: object) -> bool:
        if not isinstance(node, Mapping):
            return node is not False
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith("#") and _resolved(self._schema, reference) is not None:
            self._seen.add(reference)
            if not self._known.get(reference, False):
                return False
        if not all(map(self._ends, _listed(node, "allOf"))):
            return False
        for name in ("anyOf", "oneOf"):
            if (branches := _listed(node, name)) and not any(map(self._ends, branches)):
                return False
        kinds = node.get("type")
        if "enum" in node or "const" in node or kinds is None:
            return True
        return any(self._of_kind(node, kind) for kind in (kinds if isinstance(kinds, list) else [kinds]))

    def _of_kind(self, node: Mapping[str, Any], kind: object) -> bool:
        if kind == "object":
            properties = node.get("properties")
            known = properties if isinstance(properties, Mapping) else {}
            other = True if "patternProperties" in node else node.get("additionalProperties", True)
            return all(self._ends(known.get(name, other)) for name in _listed(node, "required") if isinstance(name, str))
        least = node.get("minItems", 0)
        if kind != "array" or not isinstance(least, int) or least < 1:
            return True
        first = _listed(node, "prefixItems")
        return all(map(self._ends, first[:least])) and (len(first) >= least or self._ends(node.get("items", True)))


def _listed(node: Mapping[str, Any], name: str) -> list[Any]:
    found = node.get(name)
    return found if isinstance(found, list) else []


def _resolved(schema: object, reference: str) -> object:
    """What a reference inside the schema (a JSON pointer) means; None for any other."""
    found = schema
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found if reference == "#" or reference.startswith("#/") else None


def patterns_of(schema: object) -> list[str]:
    """The regular expressions of a schema."""
    found: list[str] = []
    level: list[object] = [schema]
    while level:
        each = level.pop()
        if isinstance(each, Mapping):
            pattern = each.get("pattern")
            if isinstance(pattern, str):
                found.append(pattern)
            level.extend(each.values())
        elif isinstance(each, list):
            level.extend(each)
    return found
