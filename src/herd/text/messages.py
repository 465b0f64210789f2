"""Who said what: the conversation as data, before any model's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from herd.errors import UsageError

_KEYS = frozenset({"role", "content"})


class Role(Enum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model asks for. `arguments` is a JSON object, decoded."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Its text is content: no part of it can become a control token, whatever it says."""

    role: Role
    content: str


def read_messages(values: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Messages from dictionaries with `role` and `content`. `UsageError` names the message and what is wrong with it."""
    messages = [value if isinstance(value, Message) else _read(index, value) for index, value in enumerate(values)]
    if not messages:
        raise UsageError("messages is empty; a chat needs at least one message.")
    return messages


def _read(index: int, value: Any) -> Message:
    at = f"messages[{index}]"
    if not isinstance(value, Mapping):
        raise UsageError(f"{at} is {type(value).__name__}; expected an object with role and content.")
    unknown = sorted(str(key) for key in value if key not in _KEYS)
    if unknown:
        raise UsageError(f"{at} has {', '.join(unknown)}; only role and content are understood here.")
    role, content = value.get("role"), value.get("content")
    known = [r.value for r in Role]
    if role not in known:
        raise UsageError(f"{at}.role is {role!r}; expected one of {', '.join(known)}.")
    if not isinstance(content, str):
        raise UsageError(f"{at}.content is {type(content).__name__}; expected a text.")
    return Message(Role(role), content)
