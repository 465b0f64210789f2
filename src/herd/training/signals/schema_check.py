"""Whether a JSON value is what a JSON schema says (draft 2020-12, without formats and without references to other documents).

Every keyword is checked, is on the list of those that say nothing about a value, or is refused by name: a reward that ignored a
keyword would reward answers that break it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from herd.errors import UsageError, did_you_mean

MAX_DEPTH = 64
_SILENT = frozenset(
    [
        "$schema",
        "$id",
        "$anchor",
        "$comment",
        "$defs",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "format",
        "contentEncoding",
        "contentMediaType",
        "strict",
        "name",
    ]
)
"""Keywords that say nothing about whether a value is right; `format` is a note by default in this draft."""


def fits(value: Any, schema: Any) -> bool:
    """Values that are nested more than `MAX_DEPTH` deep do not. `UsageError` for a schema with a keyword that is not known, or that leads
    to itself without end."""
    return _is_shallow(value) and _fits(value, schema, schema, 0)


def _fits(value: Any, schema: Any, root: Any, steps: int) -> bool:
    """steps: how far the schema was followed for this very value."""
    if steps > MAX_DEPTH:
        raise UsageError(f"The schema leads more than {MAX_DEPTH} steps deep without an end.")
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise UsageError(f"A schema is {schema!r:.60}; expected an object, true or false.")

    def inside(item: Any, part: Any) -> bool:
        return _fits(item, part, root, steps + 1 if item is value else 0)

    for keyword, said in schema.items():
        if keyword in _SILENT or keyword in _PARTS:
            continue
        if keyword == "$ref":
            if not inside(value, _referred(root, said)):
                return False
            continue
        check = _CHECKS.get(keyword)
        if check is None:
            raise UsageError(f"The schema has a keyword {keyword!r:.60} that is not checked here{did_you_mean(keyword, _CHECKS)}")
        if not check(value, said, schema, inside):
            return False
    return _properties(value, schema, inside) and _items(value, schema, inside)


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for each in level if isinstance(each, dict | list) for item in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return True
    return False


def parsed(text: str) -> tuple[bool, Any]:
    """Whether a text is JSON and nothing else, and its value. Names that come twice, NaN and infinities are no JSON."""
    try:
        return True, json.loads(text, object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False, None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _referred(root: Any, reference: Any) -> Any:
    if not (isinstance(reference, str) and reference.startswith("#")):
        raise UsageError(f"The schema refers to {reference!r:.80}; only parts of the same schema can be (#/$defs/...).")
    found = root
    for piece in reference[1:].split("/")[1:]:
        name = piece.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            raise UsageError(f"The schema refers to {reference!r:.80}, which is not in it.")
    return found


def _is(value: Any, name: str) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return is_number and (isinstance(value, int) or value.is_integer())
        case "number":
            return is_number
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    raise UsageError(f"The schema has a type {name!r:.40}; there are null, boolean, integer, number, string, array and object.")


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0 and is not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as problem:
        raise UsageError(f"The schema's pattern {pattern!r:.80} is not a regular expression: {problem}.") from None


_Inside = Callable[[Any, Any], bool]


def _properties(value: Any, schema: Mapping[str, Any], inside: _Inside) -> bool:
    """`properties`, `patternProperties` and `additionalProperties`, which depend on each other."""
    if not isinstance(value, dict):
        return True
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, item in value.items():
        parts = ([named[key]] if key in named else []) + [part for pattern, part in patterns.items() if _compiled(pattern).search(key)]
        if not parts:
            parts = [schema.get("additionalProperties", True)]
        if not all(inside(item, part) for part in parts):
            return False
    return True


def _items(value: Any, schema: Mapping[str, Any], inside: _Inside) -> bool:
    """`prefixItems` and `items`."""
    if not isinstance(value, list):
        return True
    first = schema.get("prefixItems", [])
    pairs = [*zip(value, first, strict=False), *((item, schema.get("items", True)) for item in value[len(first) :])]
    return all(inside(item, part) for item, part in pairs)


def _unique(value: list[Any]) -> bool:
    return not any(_same(one, other) for at, one in enumerate(value) for other in value[:at])


def _multiple(value: Any, of: Any) -> bool:
    """Exactly, as both are written."""
    if not of > 0:
        raise UsageError(f"The schema has multipleOf {of!r:.40}; expected a number above 0.")
    return not (isinstance(value, float) and math.isinf(value)) and (_exact(value) / _exact(of)).denominator == 1


def _exact(number: float) -> Fraction:
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))


def _of(name: str, test: Callable[[Any, Any], bool]) -> Callable[[Any, Any, Any, _Inside], bool]:
    """A keyword that speaks about values of one type only."""
    return lambda value, said, schema, inside: not _is(value, name) or test(value, said)


_PARTS = frozenset(("then", "else", "properties", "patternProperties", "additionalProperties", "items", "prefixItems"))
"""Keywords that are looked at with others."""

_CHECKS: dict[str, Callable[[Any, Any, Mapping[str, Any], _Inside], bool]] = {
    "type": lambda value, said, schema, inside: any(_is(value, name) for name in ([said] if isinstance(said, str) else said)),
    "enum": lambda value, said, schema, inside: any(_same(value, each) for each in said),
    "const": lambda value, said, schema, inside: _same(value, said),
    "required": _of("object", lambda value, said: all(key in value for key in said)),
    "minProperties": _of("object", lambda value, said: len(value) >= said),
    "maxProperties": _of("object", lambda value, said: len(value) <= said),
    "propertyNames": lambda value, said, schema, inside: not isinstance(value, dict) or all(inside(key, said) for key in value),
    "contains": lambda value, said, schema, inside: not isinstance(value, list) or any(inside(item, said) for item in value),
    "minItems": _of("array", lambda value, said: len(value) >= said),
    "maxItems": _of("array", lambda value, said: len(value) <= said),
    "uniqueItems": _of("array", lambda value, said: not said or _unique(value)),
    "minLength": _of("string", lambda value, said: len(value) >= said),
    "maxLength": _of("string", lambda value, said: len(value) <= said),
    "pattern": _of("string", lambda value, said: _compiled(said).search(value) is not None),
    "minimum": _of("number", lambda value, said: value >= said),
    "maximum": _of("number", lambda value, said: value <= said),
    "exclusiveMinimum": _of("number", lambda value, said: value > said),
    "exclusiveMaximum": _of("number", lambda value, said: value < said),
    "multipleOf": _of("number", _multiple),
    "allOf": lambda value, said, schema, inside: all(inside(value, part) for part in said),
    "anyOf": lambda value, said, schema, inside: any(inside(value, part) for part in said),
    "oneOf": lambda value, said, schema, inside: sum(inside(value, part) for part in said) == 1,
    "not": lambda value, said, schema, inside: not inside(value, said),
    "if": lambda value, said, schema, inside: inside(value, schema.get("then" if inside(value, said) else "else", True)),
}
