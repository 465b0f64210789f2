"""Calls as models write them: recognised in a finished piece of text, and written back.

    {"name": "f", "parameters": {"a": 1}}        Llama 3.1, 3.3, 4; `arguments` for `parameters`, `type`, and OpenAI's nesting too
    [f(a=1), g(b='x')]                           Llama 3.2 and later
    <function=f>{"a": 1}</function>              Llama 3.1, by instruction
    <tool_call>{"name": ...}</tool_call>         fine-tunes with ChatML
    brave_search.call(query="...")               tools that Meta trained in by name

Nothing is run: JSON is decoded, and Python's grammar (`ast`) only read, keyword arguments with literal values. What is not
exactly such a call is None, whatever is wrong with it.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
import threading
import warnings
from collections.abc import Mapping
from typing import Any

from herd.text.tools import NAME, BuiltIn, ToolCall

_KEYS = frozenset({"name", "type", "function", "parameters", "arguments", "id"})
_LITERALS = {"true": True, "false": False, "null": None}
_BUILT_IN = re.compile(r'\s*([A-Za-z_]\w*)\.call\(\s*(\w+)="(.*)"\s*\)\s*', re.DOTALL)
_FUNCTION = re.compile(r"<function=([^<>{}]+)>(.*?)(?:</function>)?", re.DOTALL)
_WARNINGS = threading.Lock()

Found = tuple[ToolCall, ...] | None


def make_call(name: str, arguments: Mapping[str, Any]) -> ToolCall:
    """A call with an id of its own."""
    return ToolCall(new_call_id(), name, arguments)


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{os.urandom(12).hex()}"


def read_arguments(text: str) -> dict[str, Any] | None:
    """The arguments of a call, from their JSON text."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_json(text: str) -> Found:
    """One call as a JSON object, or several as a list."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    objects = value if isinstance(value, list) else [value]
    calls = [_from_object(item) for item in objects]
    return tuple(call for call in calls if call is not None) if calls and all(calls) else None


def read_python(text: str) -> Found:
    """Calls as a Python list: `[f(a=1), g(b='x')]`."""
    tree = _parsed(text)
    if not isinstance(tree, ast.List) or not tree.elts:
        return None
    calls = [_from_node(item) for item in tree.elts]
    return tuple(call for call in calls if call is not None) if all(calls) else None


def read_built_in(text: str) -> Found:
    """One call of a tool that Meta trained in: `name.call(query="...")`. The value is not escaped: it may hold quotes."""
    tree = _parsed(text)
    if isinstance(tree, ast.Call):
        match tree.func:
            case ast.Attribute(value=ast.Name(id=name), attr="call"):
                arguments = _keywords(tree)
                return None if arguments is None else (make_call(name, arguments),)
    found = _BUILT_IN.fullmatch(text)
    return (make_call(found[1], {found[2]: found[3]}),) if found else None


def read_function(text: str) -> Found:
    """`<function=NAME>{...}</function>`; the end may be missing."""
    found = _FUNCTION.fullmatch(text.strip())
    if found is None or NAME.fullmatch(found[1].strip()) is None:
        return None
    arguments = _object(found[2]) if found[2].strip() else {}
    return None if arguments is None else (make_call(found[1].strip(), arguments),)


def read_tool_call(text: str) -> Found:
    """`<tool_call>{...}</tool_call>`; the end may be missing."""
    return read_json(text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>"))


def read_calls(text: str) -> Found:
    """Calls in any notation, and nothing else."""
    for read in (read_json, read_python, read_built_in, read_function):
        found = read(text)
        if found is not None:
            return found
    return None


def read_block(text: str) -> tuple[ToolCall, ...]:
    """What stands in the block that a control token opens: calls in any notation, else code to be run."""
    return read_calls(text) or (make_call(BuiltIn.CODE_INTERPRETER.value, {"code": text}),)


def write_json(call: ToolCall) -> str:
    """As the templates of Llama 3.1 to 4 write a call."""
    return f'{{"name": "{call.name}", "parameters": {json.dumps(call.arguments, ensure_ascii=False)}}}'


def write_built_in(call: ToolCall) -> str:
    """As a call of a built-in tool. Values are written as they are, without escapes."""
    arguments = ", ".join(f'{name}="{value}"' for name, value in call.arguments.items())
    return f"{call.name}.call({arguments})"


def _refuse(text: str) -> None:
    raise ValueError(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _from_object(value: object) -> ToolCall | None:
    if not isinstance(value, dict) or not set(value) <= _KEYS or value.get("type", "function") != "function":
        return None
    function = value.get("function")
    if isinstance(function, dict):
        return None if set(value) & {"name", "parameters", "arguments"} else _named(function, function.get("name"))
    return _named(value, value.get("name") if function is None else function)


def _named(value: Mapping[str, Any], name: object) -> ToolCall | None:
    given = [value[key] for key in ("parameters", "arguments") if key in value]
    if not isinstance(name, str) or NAME.fullmatch(name) is None or len(given) != 1:
        return None
    arguments = _object(given[0]) if isinstance(given[0], str) else {} if given[0] is None else given[0]
    return make_call(name, arguments) if isinstance(arguments, dict) else None


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object, or a dictionary in Python's notation (models mix the two)."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        tree = _parsed(text)
        if not isinstance(tree, ast.Dict):
            return None
        try:
            value = _value(tree)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _parsed(text: str) -> ast.expr | None:
    """The expression that `text` is in Python's grammar. It is not run."""
    try:
        # Python warns about odd escapes in a text; whoever wrote this one is a model.
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _from_node(node: ast.expr) -> ToolCall | None:
    if not isinstance(node, ast.Call):
        return None
    names: list[str] = []
    target: ast.expr = node.func
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    if not isinstance(target, ast.Name):
        return None
    name = ".".join([target.id, *reversed(names)])
    arguments = _keywords(node)
    return None if arguments is None or NAME.fullmatch(name) is None else make_call(name, arguments)


def _keywords(node: ast.Call) -> dict[str, Any] | None:
    """The arguments of a call that has only named ones, each once, all of them values that JSON knows."""
    names = [keyword.arg for keyword in node.keywords]
    if node.args or None in names or len(set(names)) != len(names):
        return None
    try:
        return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    except (ValueError, RecursionError):
        return None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | bool() | int() | None):
            return node.value
        case ast.Constant(value=float() as number) if math.isfinite(number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return -_value(node.operand)
        case ast.Name(id=name) if name in _LITERALS:
            return _LITERALS[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
    raise ValueError("no literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("no literal")
