"""What an answer is held to, as `Model` is told: OpenAI's `response_format` and `tool_choice`, and a little more than OpenAI has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from herd.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from herd.providers.base import ToolChoice
    from herd.sampling.constraint import Constraint

PARAM = "response_format"
_TYPES = ("text", "json_object", "json_schema", "regex", "grammar")
_SCHEMA_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_SCHEMA_KEYS = frozenset(("$ref", "$defs", "$schema", "properties", "items", "enum", "const", "anyOf", "oneOf", "allOf"))


def read_response_format(value: object) -> Constraint | None:
    """None for free text.

    {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {...}}}    as OpenAI's clients write it
    {"type": "regex", "regex": "..."}, {"type": "grammar", "grammar": "..."}              in Rust's syntax; in llguidance's Lark
    {"type": "object", "properties": {...}}                                               a JSON schema itself
    a class with `model_json_schema`                                                      pydantic's models

    `UsageError` for anything else.
    """
    from herd.sampling.constraint import Constraint, ConstraintKind

    if value is None or isinstance(value, Constraint):
        return value
    make_schema = getattr(value, "model_json_schema", None)
    if callable(make_schema):
        return _schema(make_schema())
    if not isinstance(value, Mapping):
        raise _wrong(f"is {type(value).__name__}; expected an object such as {{'type': 'json_object'}}, or a JSON schema.")
    kind = value.get("type")
    if kind in _TYPES:
        _check_keys(value, str(kind))
    match kind:
        case "text":
            return None
        case "json_object":
            return Constraint(ConstraintKind.JSON_OBJECT)
        case "json_schema":
            return _schema(_named_schema(value["json_schema"]))
        case "regex" | "grammar":
            text = value[kind]
            if not isinstance(text, str):
                raise _wrong(f".{kind} is {type(text).__name__}; expected a text.")
            return Constraint(ConstraintKind.REGEX if kind == "regex" else ConstraintKind.GRAMMAR, text)
    if kind in _SCHEMA_TYPES or (kind is None and _SCHEMA_KEYS & set(value)) or isinstance(kind, list):
        return _schema(value)
    raise _wrong(f".type is {kind!r:.60}; expected one of {', '.join(_TYPES)}, or a JSON schema{did_you_mean(kind, _TYPES)}")


def read_tool_choice(value: object, parallel: bool) -> ToolChoice:
    """From "auto", "none", "required", a tool's name as OpenAI's clients write it, or a `ToolChoice`. `UsageError` for anything else."""
    from herd.providers.base import ToolChoice, ToolUse

    if isinstance(value, ToolChoice):
        return value
    if isinstance(value, Mapping):
        function = value.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if value.get("type") == "function" and isinstance(name, str) and set(value) == {"type", "function"}:
            return ToolChoice(ToolUse.NAMED, name, parallel)
    for use in (ToolUse.AUTO, ToolUse.NONE, ToolUse.REQUIRED):
        if value == use.value:
            return ToolChoice(use, None, parallel)
    raise UsageError(
        f"tool_choice is {value!r:.80}; expected auto, none, required, or {{'type': 'function', 'function': {{'name': ...}}}}.",
        param="tool_choice",
    )


def _check_keys(value: Mapping[str, Any], kind: str) -> None:
    expected = {"type"} if kind in ("text", "json_object") else {"type", kind}
    if set(value) != expected:
        raise _wrong(f" of type {kind} has {', '.join(sorted(map(str, value)))}; expected {' and '.join(sorted(expected))}.")


def _named_schema(value: object) -> object:
    if not isinstance(value, Mapping) or "schema" not in value:
        raise _wrong(".json_schema has no schema; expected {'schema': {...}}.")
    unknown = sorted(set(map(str, value)) - {"name", "description", "strict", "schema"})
    if unknown:
        raise _wrong(f".json_schema has {', '.join(unknown)}; known are name, description, strict and schema.")
    return value["schema"]


def _schema(value: object) -> Constraint:
    from herd.sampling.constraint import Constraint, ConstraintKind

    try:
        return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise _wrong(f" has a schema that cannot be written as JSON: {str(error)[:200]}.") from None


def _wrong(what: str) -> UsageError:
    return UsageError(f"{PARAM}{what if what.startswith('.') else ' ' + what.lstrip()}", param=PARAM)
