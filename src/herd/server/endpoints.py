"""The reference page of all endpoints: what each does, and for each body which fields are honoured, ignored without harm, and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from herd.server.operations import Described, described
from herd.server.reading import Body

if TYPE_CHECKING:
    from starlette.routing import Route

HEADINGS = (("HARMLESS", "Ignored, because that changes nothing"), ("REFUSED", "Refused by name"))
INTRODUCTION = """# Endpoints

Every route of `herd serve`. `GET /openapi.json` has the same for programs, with the bounds of every number.

A field is honoured, or it is on the list of those that may be ignored because that changes nothing, or it is refused with its name in
`error.param`; nothing else is accepted. Fields without a default may be left out, or be null, which is the same.
Errors: [errors](errors.md). Limits: [settings](settings.md).
"""


def endpoints_page(routes: Sequence[Route]) -> str:
    """The page, as Markdown."""
    parts = [INTRODUCTION]
    tag = ""
    for each in sorted(described(routes), key=lambda each: _TAGS.get(each.operation.tag, len(_TAGS))):
        if each.operation.tag != tag:
            tag = each.operation.tag
            parts.append(f"## {tag}\n")
        parts.extend(_section(each))
    return "\n".join(parts)


_TAGS = {name: index for index, name in enumerate(("OpenAI", "Anthropic", "Ollama", "herd", "Server"))}


def _section(each: Described) -> Iterator[str]:
    operation = each.operation
    yield f"### `{each.method} {each.path}`\n"
    yield f"{operation.summary}.\n"
    if each.doc:
        yield f"{each.doc}\n"
    told = []
    if operation.streams:
        told.append(f"Streams as `{operation.streams}` when asked to.")
    if operation.is_open:
        told.append("Needs no key.")
    if operation.uploads:
        told.append("The body is `multipart/form-data`.")
    if told:
        yield " ".join(told) + "\n"
    if operation.query:
        yield "Parameters of the address: " + ", ".join(f"`{name}` ({text})" for name, _, text in operation.query) + ".\n"
    if operation.body is not None:
        yield from _fields(operation.body)


def _fields(model: type[Body]) -> Iterator[str]:
    rows: dict[tuple[str, str], dict[str, None]] = {}
    for name, taken, default in _rows(model, ""):
        rows.setdefault((name, default), {})[taken] = None
    yield "Honoured:\n"
    yield "| field | takes | default |\n|---|---|---|"
    yield "\n".join(f"| `{name}` | {_cell(' or '.join(found))} | {_cell(default)} |" for (name, default), found in rows.items()) + "\n"
    for attribute, heading in HEADINGS:
        found = [(prefix + name, why) for prefix, each in _models(model, "", ()) for name, why in getattr(each, attribute).items()]
        if found:
            yield f"{heading}:\n"
            yield "\n".join(f"- `{name}`: {why.rstrip('.')}." for name, why in dict(found).items()) + "\n"


def _rows(model: type[Body], prefix: str) -> Iterator[tuple[str, str, str]]:
    """The fields of a body and of the objects in it, by dotted path."""
    for path, each in _models(model, prefix, ()):
        properties = each.model_json_schema(ref_template="{model}").get("properties", {})
        required = {field.alias or name for name, field in each.model_fields.items() if field.is_required()}
        for name, schema in properties.items():
            default = "required" if name in required else _shown(schema.get("default"))
            yield path + name, takes(schema), default


def _models(model: type[Body], prefix: str, above: tuple[type, ...]) -> Iterator[tuple[str, type[Body]]]:
    """A body, and each kind of object within it, under the path of the field that holds it."""
    yield prefix, model
    if model in above or len(above) > 4:
        return
    for name, field in model.model_fields.items():
        for inner, is_list in _bodies(field.annotation, False):
            if inner not in (*above, model):
                yield from _models(inner, f"{prefix}{field.alias or name}{'[]' if is_list else ''}.", (*above, model))


def _bodies(annotation: Any, is_list: bool) -> Iterator[tuple[type[Body], bool]]:
    """Bodies that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Body):
        yield annotation, is_list
        return
    holds_list = is_list or getattr(annotation, "__origin__", None) in (list, tuple)
    for inner in get_args(annotation):
        yield from _bodies(inner, holds_list)


def takes(schema: dict[str, Any]) -> str:
    """What values a field takes, in words."""
    if "const" in schema:
        return _shown(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_shown, schema["enum"]))
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [each for each in schema.get("anyOf", schema.get("oneOf", [])) if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(map(takes, kinds)))
    if "$ref" in schema or "allOf" in schema:
        return "an object"
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        most = f" of at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"a list{most}: {takes(schema.get('items', {}))}"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "object": "an object",
        "null": "null",
    }
    return words.get(kind, kind) + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    if low is not None:
        return f" from {_number(low)}"
    if "maxLength" in schema:
        return f" of at most {schema['maxLength']} characters"
    return ""


def _number(value: float) -> str:
    for power in (31, 63):
        if value == 2**power - 1:
            return f"2^{power} - 1"
    return f"{value:g}" if value < 10**6 else str(value)


def _shown(value: object) -> str:
    """A value as it is written in JSON; a text without its quotes."""
    return "" if value is None else f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
