"""The language of an answer that calls tools, for each notation of calls: a grammar in llguidance's variant of Lark.

An answer held to such a grammar is at least one call, well-formed, of an offered tool, with arguments that its schema allows; the parser
of the same format reads it back. Control tokens are named by their ids, so no text can stand for one.

The schema of a tool's arguments is held to as it is, but that

  an object with `properties` has no others, unless the schema says so    callers pass arguments by name
  no parameters at all are an object without properties
  numbers without limits are at most 10^15, without exponents            so that they are numbers for every reader
  keywords that a grammar cannot express are let be                       unless the tool is `strict`: then they are refused
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from herd.errors import UsageError
from herd.text.formats.begun import Head
from herd.text.tools import BuiltIn, Tool

CALLS_MAX = 32
"""Calls in one answer."""
LARGEST = 10**15
_WHITESPACE = r"( |\n[ \t]{0,32})?"
_ESCAPES = 'nrbtf\\"u'
_QUERY = r'/[^"\\\n]{1,1000}/'
_CODE = r"/\S(?s:.*)/"
# What can be said of a tool's parameters so that each is a keyword argument of its own.
_PLAIN = frozenset(
    ("type", "properties", "required", "additionalProperties", "$defs", "definitions", "title", "description", "$schema", "$id", "examples")
)


class Grammar:
    """Rules in the making."""

    def __init__(self) -> None:
        self._rules: list[str] = []
        self._schemas: dict[str, str] = {}

    def rule(self, name: str, body: str) -> str:
        """Adds a rule; returns its name."""
        self._rules.append(f"{name}: {body}")
        return name

    def json(self, schema: Any, *, is_strict: bool) -> str:
        """A rule for JSON of a schema; the same for the same schema."""
        options = {"whitespace_pattern": _WHITESPACE, "json_allowed_escapes": _ESCAPES, "lenient": not is_strict}
        written = json.dumps({**schema, "x-guidance": options} if isinstance(schema, dict) else schema)
        if written not in self._schemas:
            self._schemas[written] = self.rule(f"json_{len(self._schemas)}", f"%json {written}")
        return self._schemas[written]

    def text(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", *self._rules]) + "\n"


def literal(text: str) -> str:
    """A text as it stands in a rule."""
    return json.dumps(text, ensure_ascii=False)


def token(token_id: int) -> str:
    """A control token as it stands in a rule."""
    return f"<[{token_id}]>"


def several(call: str, between: str, *, parallel: bool) -> str:
    """One call, or as many as there may be."""
    return f"({call}) ({between} ({call})){{0,{CALLS_MAX - 1}}}" if parallel else f"({call})"


def json_calls(
    grammar: Grammar, tools: Iterable[Tool | BuiltIn], *, key: str = "parameters", typed: bool = False, begin: str = "{", end: str = "}"
) -> list[str]:
    """A rule for each tool: `{"name": "f", "parameters": {...}}`. typed: with `"type": "function"` first. begin, end: what stands in
    place of the outermost brackets."""
    rules = []
    for tool in tools:
        if isinstance(tool, Tool):
            head = _json_head(tool, key, typed, begin)
            arguments = grammar.json(arguments_schema(tool), is_strict=is_strict(tool))
            rules.append(grammar.rule(f"call_{tool_rule(tool.name)}", f"{literal(head)} {arguments} {literal(end)}"))
    return rules


def json_heads(
    tools: Iterable[Tool | BuiltIn], *, key: str = "parameters", typed: bool = False, begin: str = "{", end: str = "}"
) -> dict[str, Head]:
    """How the calls of `json_calls` begin."""
    return {_json_head(tool, key, typed, begin): Head(tool.name, end) for tool in tools if isinstance(tool, Tool)}


def _json_head(tool: Tool, key: str, typed: bool, begin: str) -> str:
    kind = '"type": "function", ' if typed else ""
    return f'{begin}{kind}"name": {json.dumps(tool.name)}, "{key}": '


def tagged_calls(grammar: Grammar, tools: Iterable[Tool | BuiltIn]) -> list[str]:
    """A rule for each tool: `<function=f>{...}</function>`."""
    rules = []
    for tool in tools:
        if isinstance(tool, Tool):
            arguments = grammar.json(arguments_schema(tool), is_strict=is_strict(tool))
            body = f"{literal(f'<function={tool.name}>')} {arguments} {literal('</function>')}"
            rules.append(grammar.rule(f"call_{tool_rule(tool.name)}", body))
    return rules


def tagged_heads(tools: Iterable[Tool | BuiltIn]) -> dict[str, Head]:
    """How the calls of `tagged_calls` begin."""
    return {f"<function={tool.name}>": Head(tool.name, "</function>") for tool in tools if isinstance(tool, Tool)}


def python_heads(tools: Iterable[Tool | BuiltIn]) -> dict[str, Head]:
    """How the calls of `python_calls` begin."""
    functions = [tool for tool in tools if isinstance(tool, Tool)]
    able = {f"[{tool.name}(": Head(tool.name, is_json=False) for tool in functions if _is_python(tool)}
    return able | json_heads(tool for tool in functions if not _is_python(tool))


def built_in_heads(tools: Iterable[Tool | BuiltIn], tag: str) -> dict[str, Head]:
    """How the calls of `built_in_calls` begin."""
    found = [tool for tool in tools if isinstance(tool, BuiltIn)]
    texts = {tool: "" if tool is BuiltIn.CODE_INTERPRETER else f'{tool.value}.call(query="' for tool in found}
    return {tag + text: Head(tool.value, is_json=False) for tool, text in texts.items()}


def python_calls(grammar: Grammar, tools: Sequence[Tool | BuiltIn], *, parallel: bool) -> str:
    """The start of a grammar of `[f(a=1), g()]`. Tools that Python's notation cannot name are called as JSON, alone."""
    able = [tool for tool in tools if isinstance(tool, Tool) and _is_python(tool)]
    rules = [_python_call(grammar, tool) for tool in able]
    ways = json_calls(grammar, [tool for tool in tools if tool not in able])
    if rules:
        ways.append(f'"[" {several(" | ".join(rules), literal(", "), parallel=parallel)} "]"')
    return " | ".join(ways)


def built_in_calls(grammar: Grammar, tools: Iterable[Tool | BuiltIn], tag: str) -> list[str]:
    """A rule for each tool that Meta trained in, behind the control token `tag`."""
    rules = []
    for tool in tools:
        if isinstance(tool, BuiltIn):
            is_code = tool is BuiltIn.CODE_INTERPRETER
            body = _CODE if is_code else f"{literal(tool.value + '.call(query=' + chr(34))} {_QUERY} {literal(chr(34) + ')')}"
            rules.append(grammar.rule(f"call_{tool.value}", f"{tag} {body}"))
    return rules


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema that a tool's arguments are held to. `UsageError` for one that has a keyword which is none of JSON Schema's."""
    schema = dict(tool.parameters)
    if "x-guidance" in schema:
        raise UsageError(f"the parameters of the tool {tool.name} have x-guidance, which is no keyword of JSON Schema; leave it out.")
    if not schema:
        schema = {"properties": {}}
    schema.setdefault("type", "object")
    if "properties" in schema and not set(schema) & {"additionalProperties", "patternProperties", "anyOf", "oneOf", "allOf", "$ref"}:
        schema["additionalProperties"] = False
    limited = _limited(schema)
    assert isinstance(limited, dict)
    return limited


def is_strict(tool: Tool) -> bool:
    """Whether whoever offered the tool asked for arguments that hold to the schema in every keyword."""
    function = tool.written.get("function", tool.written)
    return isinstance(function, Mapping) and function.get("strict") is True


def tool_rule(name: str) -> str:
    """A tool's name as part of a rule's: letters, digits and _ alone, and different for different names."""
    return "".join(character if character.isalnum() else f"_{ord(character):02x}" for character in name.lower()) + _capitals(name)


def _capitals(name: str) -> str:
    """Which letters of a name are capitals, as rules have small ones only."""
    bits = "".join("1" if character.isupper() else "0" for character in name)
    return f"_c{int(bits, 2):x}" if "1" in bits else ""


def _limited(schema: Any) -> Any:
    """The same schema with limits for numbers that have none. Depth is bounded by who read the schema."""
    if isinstance(schema, list):
        return [_limited(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: item if key in ("enum", "const", "default", "examples") else _limited(item) for key, item in schema.items()}
    kind = schema.get("type")
    if kind == "number" or (isinstance(kind, list) and "number" in kind):
        if not {"minimum", "exclusiveMinimum"} & set(made):
            made["minimum"] = -LARGEST
        if not {"maximum", "exclusiveMaximum"} & set(made):
            made["maximum"] = LARGEST
    return made


def _is_python(tool: Tool) -> bool:
    """Whether a call of the tool can be written in Python's notation, each argument by its name."""
    schema = arguments_schema(tool)
    properties, required = schema.get("properties"), schema.get("required", [])
    names = tool.name.split(".")
    return (
        set(schema) <= _PLAIN
        and schema["type"] == "object"
        and schema.get("additionalProperties") is False
        and isinstance(properties, dict)
        and isinstance(required, list)
        and set(map(str, required)) <= set(properties)
        and all(name.isidentifier() and not keyword.iskeyword(name) for name in [*names, *properties])
        and not _refers_elsewhere(properties)
    )


def _refers_elsewhere(value: Any) -> bool:
    """Whether a schema refers to something that does not stand under `$defs` or `definitions`."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            target = item.get("$ref")
            if isinstance(target, str) and not target.startswith(("#/$defs/", "#/definitions/")):
                return True
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return False


def _python_call(grammar: Grammar, tool: Tool) -> str:
    """A rule for `f(a=1, b="x")`: arguments in the schema's order, those that are not required perhaps left out."""
    schema = arguments_schema(tool)
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    name, required = tool_rule(tool.name), set(schema.get("required", []))
    # rest: arguments from here on, after another one; first: the same with none before.
    rest, first = "", '""'
    for parameter, wanted in reversed(schema["properties"].items()):
        argument = f"{literal(parameter + '=')} {_python_value(grammar, wanted, shared, is_strict=is_strict(tool))}"
        here = f"{argument} {rest}".strip()
        first = f"({here})" if parameter in required else f"({here} | {first})"
        rest = f'", " {argument} {rest}' if parameter in required else f'(", " {argument})? {rest}'
        rest = grammar.rule(f"rest_{name}_{len(grammar._rules)}", rest)
        first = grammar.rule(f"first_{name}_{len(grammar._rules)}", first)
    return grammar.rule(f"call_{name}", f'{literal(tool.name + "(")} {first} ")"')


def _python_value(grammar: Grammar, schema: Any, shared: Mapping[str, Any], *, is_strict: bool) -> str:
    """A value: as Python writes it where it is a truth value, else as JSON, which the parser reads as well."""
    if isinstance(schema, dict) and schema.get("type") == "boolean" and not set(schema) & {"enum", "const"}:
        return '("True" | "False")'
    return grammar.json({**schema, **shared} if isinstance(schema, dict) else schema, is_strict=is_strict)
