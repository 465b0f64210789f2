"""What a model may ask for: tools, and calls of them.

A `Tool` is a function that the caller runs; its parameters are a JSON schema. A `BuiltIn` is one that Meta trained into its models
by name. Both are read from the shape that OpenAI's clients send (`read_tools`). Neither names nor texts of them can become control
tokens: the chat formats treat them as content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from enum import Enum
from typing import Any

from herd.errors import UsageError
from herd.records import dataclass

NAME = re.compile(r"[A-Za-z_][\w.:/-]{0,127}", re.ASCII)
"""What a function may be called."""
TOOLS_MAX = 1024
SCHEMA_CHARACTERS_MAX = 1 << 20
_TOOL_KEYS = frozenset({"name", "description", "parameters", "strict"})


class BuiltIn(Enum):
    """Tools that Llama 3.1 and later know without a description."""

    BRAVE_SEARCH = "brave_search"
    WOLFRAM_ALPHA = "wolfram_alpha"
    CODE_INTERPRETER = "code_interpreter"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model asks for. `arguments` is a JSON object, decoded. `id` tells calls apart; it means nothing else."""

    id: str = field(compare=False)
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the caller offers. parameters: a JSON schema. given: the object as it was sent, which templates print."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def function(self) -> dict[str, Any]:
        """Name, description and parameters as one JSON object."""
        return {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}

    @property
    def written(self) -> Mapping[str, Any]:
        """What templates print: the object as it was sent, else OpenAI's shape of it."""
        return self.given if self.given is not None else {"type": "function", "function": self.function}


def read_tools(values: Iterable[Tool | BuiltIn | str | Mapping[str, Any]] | None) -> tuple[Tool | BuiltIn, ...]:
    """Tools from OpenAI's shape, or as they are; built-in ones also by their name. `UsageError` names the one that is wrong."""
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable | None):
        raise UsageError(f"tools is {type(values).__name__}; expected a list of tools.")
    tools = tuple(_read(f"tools[{index}]", value) for index, value in enumerate(values or ()))
    if len(tools) > TOOLS_MAX:
        raise UsageError(f"tools has {len(tools)} entries; at most {TOOLS_MAX} are allowed.")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        name = tool.name if isinstance(tool, Tool) else tool.value
        if name in names:
            raise UsageError(f"tools[{index}] is called {name!r}, as an earlier one is; names must differ.")
        names.add(name)
    return tools


def tool_name(value: object, at: str) -> str:
    """A function's name. `UsageError` for one that could not be told from the text around it."""
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        raise UsageError(f"{at} is {value!r:.80}; a name is up to 128 letters, digits and _ . : / -, and begins with a letter or _.")
    return value


def plain_json(value: object, at: str) -> Any:
    """A copy that JSON can hold. `UsageError` for what it cannot, for NaN and infinities, and for what is nested too deeply."""
    try:
        text = json.dumps(value, allow_nan=False)
        if len(text) > SCHEMA_CHARACTERS_MAX:
            raise UsageError(f"{at} takes {len(text)} characters as JSON; at most {SCHEMA_CHARACTERS_MAX} are read.")
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{at} cannot be written as JSON: {str(error)[:200]}.") from None


def _read(at: str, value: object) -> Tool | BuiltIn:
    if isinstance(value, Tool):
        tool_name(value.name, f"{at}.name")
        plain_json(dict(value.written), at)
        return value
    if isinstance(value, BuiltIn):
        return value
    if isinstance(value, Mapping):
        return _read_object(at, value)
    built_in = _built_in(value)
    if built_in is None:
        known = ", ".join(tool.value for tool in BuiltIn)
        raise UsageError(f"{at} is {value!r:.80}; expected a function as an object, or one of {known}.")
    return built_in


def _built_in(name: object) -> BuiltIn | None:
    return next((tool for tool in BuiltIn if tool.value == name), None)


def _read_object(at: str, value: Mapping[str, Any]) -> Tool | BuiltIn:
    given = plain_json(dict(value), at)
    kind = given.get("type", "function")
    built_in = _built_in(kind)
    if built_in is not None and set(given) == {"type"}:
        return built_in
    if kind != "function":
        known = ", ".join(tool.value for tool in BuiltIn)
        raise UsageError(f"{at}.type is {kind!r:.80}; expected function, or one of {known} alone.")
    function = given.get("function") if "function" in given else {key: item for key, item in given.items() if key != "type"}
    where = f"{at}.function" if "function" in given else at
    outside = sorted(set(given) - {"type", "function"}) if "function" in given else []
    if not isinstance(function, dict):
        raise UsageError(f"{where} is {type(function).__name__}; expected an object with name, description and parameters.")
    unknown = outside or sorted(set(function) - _TOOL_KEYS)
    if unknown:
        raise UsageError(f"{where} has {', '.join(unknown)}; known are {', '.join(sorted(_TOOL_KEYS))}.")
    name = tool_name(function.get("name"), f"{where}.name")
    description, parameters = function.get("description"), function.get("parameters")
    if description is not None and not isinstance(description, str):
        raise UsageError(f"{where}.description is {type(description).__name__}; expected a text.")
    if parameters is not None and not isinstance(parameters, dict):
        raise UsageError(f"{where}.parameters is {type(parameters).__name__}; expected a JSON schema.")
    return Tool(name, description or "", parameters or {}, given)
