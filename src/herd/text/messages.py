"""Who said what: the conversation as data, before any model's format.

A message's content is a text, or a list of texts and pictures. Dictionaries are read in the shape that OpenAI's clients send. A
picture is kept as it was given (bytes, a `data:` URL, or a `PIL.Image`) and decoded when a model looks at it, by `herd.images`. A video
is its frames, one picture each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import field
from enum import Enum
from typing import Any

from herd.errors import UsageError
from herd.records import dataclass
from herd.text.tools import BuiltIn, Tool, ToolCall, plain_json, read_tools, tool_name

__all__ = ["BuiltIn", "Image", "Message", "Role", "Text", "Tool", "ToolCall", "read_messages", "read_tools"]

MESSAGES_MAX = 100_000
VIDEO_FRAMES = 8
"""Frames that are taken, evenly, of an animation: as many pictures as Llama 4 was found to do well with."""
_KEYS = frozenset({"role", "content", "tool_calls", "tool_call_id", "name"})
_IGNORED_IN_IMAGE_URL = frozenset({"detail"})
"""How finely a picture is looked at is fixed by each model's preprocessing, so a client's wish about it changes nothing."""


class Role(Enum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a message that is text."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A piece of a message that is a picture: an encoded file, a `data:` URL, or a `PIL.Image`."""

    source: object

    def open(self) -> Any:
        """The picture as a `PIL.Image`. `UsageError` for what is no picture, or too large a one."""
        from herd.images.decode import open_image

        source: Any = self.source
        return open_image(source)


Content = str | tuple[Text | Image, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Its text is content: no part of it can become a control token, whatever it says.

    tool_calls     what an assistant's message asks for
    tool_call_id   which call a tool's message answers
    name           of the tool whose message this is, for templates that write it
    ends_turn      of an assistant's message: False where the model expects to go on after a tool's result; None: as its format does
    """

    role: Role
    content: Content = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    ends_turn: bool | None = field(default=None, compare=False)

    @property
    def parts(self) -> tuple[Text | Image, ...]:
        """The content in pieces; a text is one piece, an empty one none."""
        if isinstance(self.content, str):
            return (Text(self.content),) if self.content else ()
        return self.content

    @property
    def text(self) -> str:
        """The texts of the content, joined."""
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content if isinstance(p, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures of the content, in order."""
        return () if isinstance(self.content, str) else tuple(part for part in self.content if isinstance(part, Image))


def read_messages(values: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Messages from dictionaries in OpenAI's shape. `UsageError` names the message and what is wrong with it."""
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise UsageError(f"messages is {type(values).__name__}; expected a list of messages.")
    messages = [value if isinstance(value, Message) else _read(f"messages[{index}]", value) for index, value in enumerate(values)]
    if not messages:
        raise UsageError("messages is empty; a chat needs at least one message.")
    if len(messages) > MESSAGES_MAX:
        raise UsageError(f"messages has {len(messages)} entries; at most {MESSAGES_MAX} are read.")
    return messages


def _read(at: str, value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise UsageError(f"{at} is {type(value).__name__}; expected an object with role and content.")
    # Clients send back what they got, with fields that are null or empty.
    unknown = sorted(str(key) for key, item in value.items() if key not in _KEYS and item is not None and item != [])
    if unknown:
        raise UsageError(f"{at} has {', '.join(unknown)}; only {', '.join(sorted(_KEYS))} are understood here.")
    role = _role(at, value.get("role"))
    calls, call_id, name = value.get("tool_calls"), value.get("tool_call_id"), value.get("name")
    if calls and role is not Role.ASSISTANT:
        raise UsageError(f"{at} has tool_calls and the role {role.value}; only an assistant's message calls tools.")
    if (call_id is not None or name is not None) and role is not Role.TOOL:
        raise UsageError(f"{at} has {'name' if call_id is None else 'tool_call_id'} and the role {role.value}; only tools' messages do.")
    if call_id is not None and not isinstance(call_id, str):
        raise UsageError(f"{at}.tool_call_id is {type(call_id).__name__}; expected a text.")
    made = tuple(_read_call(f"{at}.tool_calls[{index}]", call) for index, call in enumerate(_list(f"{at}.tool_calls", calls)))
    content = _read_content(f"{at}.content", value.get("content"), optional=bool(made))
    if role is not Role.USER and not isinstance(content, str) and any(isinstance(part, Image) for part in content):
        raise UsageError(f"{at}.content has a picture and the role {role.value}; only a user's message shows pictures.")
    return Message(role, content, made, call_id, None if name is None else tool_name(name, f"{at}.name"))


def _role(at: str, value: object) -> Role:
    names = {"ipython": Role.TOOL, "developer": Role.SYSTEM} | {role.value: role for role in Role}
    role = names.get(value) if isinstance(value, str) else None
    if role is None:
        raise UsageError(f"{at}.role is {value!r:.80}; expected one of {', '.join(role.value for role in Role)}.")
    return role


def _list(at: str, value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise UsageError(f"{at} is {type(value).__name__}; expected a list.")
    return list(value)


def _read_call(at: str, value: object) -> ToolCall:
    if isinstance(value, ToolCall):
        return value
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(function, Mapping):
        raise UsageError(f"{at} is {value!r:.80}; expected an object with id, type and function.")
    if value.get("type", "function") != "function":
        raise UsageError(f"{at}.type is {value.get('type')!r:.80}; expected function.")
    unknown = sorted({str(k) for k in value} - {"id", "type", "function", "index"} | {str(k) for k in function} - {"name", "arguments"})
    if unknown:
        raise UsageError(f"{at} has {', '.join(unknown)}; expected id, type, and a function with name and arguments.")
    call_id = value.get("id", "")
    if not isinstance(call_id, str):
        raise UsageError(f"{at}.id is {type(call_id).__name__}; expected a text.")
    return ToolCall(call_id, tool_name(function.get("name"), f"{at}.function.name"), _arguments(at, function.get("arguments")))


def _arguments(at: str, value: object) -> dict[str, Any]:
    where = f"{at}.function.arguments"
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            raise UsageError(f"{where} is {value!r:.80}, which is not JSON; expected a JSON object.") from None
    value = plain_json({} if value is None else value, where)
    if not isinstance(value, dict):
        raise UsageError(f"{where} is {type(value).__name__}; expected a JSON object.")
    return value


def _read_content(at: str, value: object, *, optional: bool) -> Content:
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if not isinstance(value, list | tuple):
        raise UsageError(f"{at} is {type(value).__name__}; expected a text, or a list of texts and pictures.")
    return tuple(each for index, part in enumerate(value) for each in _read_parts(f"{at}[{index}]", part))


def _read_parts(at: str, value: Any) -> Iterable[Text | Image]:
    """A video is its frames: Llama 4 was trained on stills, and no other release has words for more in a chat."""
    if not isinstance(value, Mapping) or value.get("type") != "video":
        return (_read_part(at, value),)
    extra = sorted(str(key) for key, item in value.items() if key not in ("type", "video") and item is not None)
    if extra:
        raise UsageError(f"{at} has {', '.join(extra)}; a part of type video has only video.")
    held = value.get("video")
    if isinstance(held, bytes | bytearray | memoryview):
        from herd.images.frames import read_frames

        return tuple(map(Image, read_frames(bytes(held), VIDEO_FRAMES).images))
    if not isinstance(held, list | tuple) or not held:
        found = "an empty list" if isinstance(held, list | tuple) else type(held).__name__
        raise UsageError(f"{at}.video is {found}; expected a list of pictures, or the bytes of an animated GIF, WebP or PNG.")
    return tuple(Image(_picture_source(f"{at}.video[{index}]", frame)) for index, frame in enumerate(held))


def _read_part(at: str, value: Any) -> Text | Image:
    if isinstance(value, Text | Image):
        return value
    if isinstance(value, str):
        return Text(value)
    if _is_picture(value):
        return Image(value)
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind not in ("text", "image", "image_url"):
        raise UsageError(f"{at} is {value!r:.80}; expected an object of type text, image_url, image or video.")
    extra = sorted(str(key) for key, item in value.items() if key not in ("type", kind) and item is not None)
    if extra:
        raise UsageError(f"{at} has {', '.join(extra)}; a part of type {kind} has only {kind}.")
    held = value.get(kind)
    if kind == "text":
        if not isinstance(held, str):
            raise UsageError(f"{at}.text is {type(held).__name__}; expected a text.")
        return Text(held)
    return Image(_picture_source(f"{at}.{kind}", held))


def _picture_source(at: str, held: object) -> object:
    if isinstance(held, Mapping):
        extra = sorted({str(key) for key in held} - {"url"} - _IGNORED_IN_IMAGE_URL)
        if extra or not isinstance(held.get("url"), str):
            raise UsageError(f"{at} has {', '.join(extra) or 'no url'}; expected an object with url.")
        held = held["url"]
    if isinstance(held, str):
        if not held[:5].lower() == "data:":
            raise UsageError(
                f"{at} is {held!r:.60}; pictures are given in the message, as a data: URL (data:image/png;base64,...). Addresses and"
                " file names are not opened here: read the picture first."
            )
        return held
    if isinstance(held, bytes | bytearray | memoryview):
        return bytes(held)
    if _is_picture(held):
        return held
    raise UsageError(f"{at} is {type(held).__name__}; expected a data: URL, the bytes of a picture file, or a PIL.Image.")


def _is_picture(value: object) -> bool:
    """Whether this is a `PIL.Image.Image`, without importing Pillow."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(value).__mro__)
