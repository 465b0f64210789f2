"""Conversations as OpenAI's clients send them, and as models read them.

Every role has its own shape, so that a field in the wrong place is refused by name. Texts are content whatever they say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from herd.errors import UsageError
from herd.server.fetching import Rules, fetch_picture
from herd.server.openai.fields import CACHE_IS_AUTOMATIC, Name, known, one_or_list
from herd.server.reading import Body
from herd.server.settings import LIMITS
from herd.text.messages import Image, Message, Role, Text
from herd.text.tools import ToolCall, plain_json, tool_name

FETCHES_AT_ONCE = 4
"""Pictures of one request that are fetched at the same time."""

_NO_NAMES = "the formats of Llama models have no place for names; write the name into the content."
_CACHE_MARKS: Mapping[str, str] = {"cache_control": CACHE_IS_AUTOMATIC, "prompt_cache_breakpoint": CACHE_IS_AUTOMATIC}
_NOT_TAKEN = {
    "input_audio": "this server does not hear; send its transcript as text",
    "file": "files are not read; send their text, or pictures of their pages",
    "video_url": "send the frames that matter as pictures",
}


class TextPart(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = _CACHE_MARKS

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    """What an assistant's earlier message refused with."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {"detail": "how finely a picture is looked at is fixed by how each model was trained"}

    url: str = Field(min_length=1, description="data:image/png;base64,..., or an address on a host that this server was allowed.")


class ImagePart(Body):
    """A picture, for models that see."""

    HARMLESS: ClassVar[Mapping[str, str]] = _CACHE_MARKS

    type: Literal["image_url"]
    image_url: Annotated[
        Annotated[str, Field(min_length=1), Tag("url")] | Annotated[ImageUrl, Tag("object")],
        Discriminator(lambda value: "url" if isinstance(value, str) else "object"),
    ]

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


def _known_part(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in _NOT_TAKEN:
        raise PydanticCustomError(
            "herd_part", "parts of type {kind} are not honoured here: {advice}", {"kind": kind, "advice": _NOT_TAKEN[kind]}
        )
    return value


TextParts = Annotated[list[Annotated[TextPart, known("type", "text"), BeforeValidator(_known_part)]], Field(min_length=1)]
UserPart = Annotated[TextPart | ImagePart, Field(discriminator="type"), known("type", "text", "image_url"), BeforeValidator(_known_part)]
AssistantPart = Annotated[
    TextPart | RefusalPart, Field(discriminator="type"), known("type", "text", "refusal"), BeforeValidator(_known_part)
]
TextContent = Annotated[Annotated[str, Tag("one")] | Annotated[TextParts, Tag("list")], Discriminator(one_or_list)]
UserContent = Annotated[
    Annotated[str, Tag("one")] | Annotated[list[UserPart], Field(min_length=1), Tag("list")], Discriminator(one_or_list)
]
AssistantContent = Annotated[
    Annotated[str, Tag("one")] | Annotated[list[AssistantPart], Field(min_length=1), Tag("list")], Discriminator(one_or_list)
]


class SystemMessage(Body):
    REFUSED: ClassVar[Mapping[str, str]] = {"name": _NO_NAMES}

    role: Literal["system", "developer"]
    content: TextContent


class UserMessage(Body):
    REFUSED: ClassVar[Mapping[str, str]] = {"name": _NO_NAMES}

    role: Literal["user"]
    content: UserContent


class CalledFunction(Body):
    name: Name
    arguments: str = Field(description="A JSON object, as text.")


class CallField(Body):
    """A call that an earlier answer made."""

    HARMLESS: ClassVar[Mapping[str, str]] = {"index": "calls are in the order of their list"}

    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Body):
    """What the model, or another one, said before."""

    HARMLESS: ClassVar[Mapping[str, str]] = {"annotations": "what an earlier answer cited is in its content as far as a model reads it"}
    REFUSED: ClassVar[Mapping[str, str]] = {"name": _NO_NAMES, "audio": "this server does not hear; send its transcript as content."}

    role: Literal["assistant"]
    content: AssistantContent | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[CallField], Field(max_length=LIMITS.tools)] | None = None
    function_call: CalledFunction | None = None


class ToolMessage(Body):
    """The result of a call."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: Name
    name: Name | None = None


class FunctionMessage(Body):
    """Deprecated form of a tool's message."""

    role: Literal["function"]
    content: TextContent | None
    name: Name


AnyMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
    known("role", "system", "developer", "user", "assistant", "tool", "function"),
]
Messages = Annotated[list[AnyMessage], Field(min_length=1, max_length=LIMITS.messages)]


def read_conversation(given: Sequence[AnyMessage]) -> list[Message]:
    """Messages as models read them; pictures still by their addresses. `UsageError` names the message that makes no sense."""
    called: set[str] = set()
    found: list[Message] = []
    for index, message in enumerate(given):
        at = f"messages.{index}"
        match message:
            case SystemMessage():
                found.append(Message(Role.SYSTEM, _content(message.content)))
            case UserMessage():
                found.append(Message(Role.USER, _content(message.content)))
            case AssistantMessage():
                read = _assistant(message, at)
                called |= {call.id for call in read.tool_calls}
                found.append(read)
            case ToolMessage():
                if message.tool_call_id not in called:
                    raise UsageError(f"{at} answers a call that no message before it made.", param=f"{at}.tool_call_id")
                found.append(
                    Message(Role.TOOL, _content(message.content), (), message.tool_call_id, _tool_name(message.name, f"{at}.name"))
                )
            case FunctionMessage():
                if message.name not in called:
                    raise UsageError(f"{at} answers a call that no message before it made.", param=f"{at}.name")
                content = _content(message.content or "")
                found.append(Message(Role.TOOL, content, (), message.name, _tool_name(message.name, f"{at}.name")))
    if sum(len(message.images) for message in found) > LIMITS.pictures:
        raise UsageError(f"The conversation has more than {LIMITS.pictures} pictures.", param="messages")
    return found


async def with_pictures(messages: Sequence[Message], rules: Rules, param: str | None = None) -> list[Message]:
    """The same messages with the bytes of pictures that are named by address. `UsageError` for what may not or cannot be fetched, and for
    pictures that are together larger than `rules` lets one be, times four. param: the field that errors name; None: the place in
    `messages`."""
    places = {
        str(part.source): param or f"messages.{index}.content.{place}.image_url"
        for index, message in reversed(list(enumerate(messages)))
        for place, part in reversed(list(enumerate(message.parts)))
        if isinstance(part, Image) and _is_address(part)
    }
    if not places:
        return list(messages)
    found: dict[str, bytes] = {}
    turns = asyncio.Semaphore(FETCHES_AT_ONCE)

    async def fetch(url: str, at: str) -> None:
        async with turns:
            try:
                found[url] = await fetch_picture(url, rules)
            except UsageError as problem:
                raise UsageError(f"{at}: {problem}", param=at) from None
        if sum(map(len, found.values())) > FETCHES_AT_ONCE * rules.max_bytes:
            raise UsageError(f"The pictures are larger than {FETCHES_AT_ONCE * rules.max_bytes} bytes together.", param=param or "messages")

    await _together([fetch(url, at) for url, at in places.items()])
    return [
        replace(message, content=tuple(_held(part, found) for part in message.parts)) if message.images else message for message in messages
    ]


async def _together(jobs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs all of them; the first that fails ends the others, and is what is raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _held(part: Text | Image, found: Mapping[str, bytes]) -> Text | Image:
    return Image(found[str(part.source)]) if isinstance(part, Image) and _is_address(part) else part


def _is_address(part: Text | Image) -> bool:
    return isinstance(part, Image) and isinstance(part.source, str) and part.source[:5].lower() != "data:"


def _content(given: str | Sequence[TextPart | ImagePart | RefusalPart]) -> str | tuple[Text | Image, ...]:
    """One text stays one; of parts, those that are refusals are the text that was said."""
    if isinstance(given, str):
        return given
    return tuple(_part(part) for part in given)


def _part(part: TextPart | ImagePart | RefusalPart) -> Text | Image:
    match part:
        case ImagePart():
            return Image(part.url)
        case RefusalPart():
            return Text(part.refusal)
        case _:
            return Text(part.text)


def _assistant(message: AssistantMessage, at: str) -> Message:
    calls = tuple(_call(call, f"{at}.tool_calls.{index}") for index, call in enumerate(message.tool_calls or ()))
    if message.function_call is not None:
        if calls:
            raise UsageError(f"{at} has tool_calls and their old form, function_call; send one of them.", param=f"{at}.function_call")
        name = message.function_call.name
        calls = (ToolCall(name, tool_name(name, f"{at}.function_call.name"), _arguments(message.function_call, f"{at}.function_call")),)
    content = message.content if message.content is not None else message.refusal
    if content is None and not calls:
        raise UsageError(f"{at} says nothing: expected content, a refusal or calls.", param=f"{at}.content")
    return Message(Role.ASSISTANT, _content(content or ""), calls)


def _call(call: CallField, at: str) -> ToolCall:
    name = _tool_name(call.function.name, f"{at}.function.name")
    assert name is not None
    return ToolCall(call.id, name, _arguments(call.function, f"{at}.function"))


def _tool_name(name: str | None, at: str) -> str | None:
    if name is None:
        return None
    try:
        return tool_name(name, at)
    except UsageError as problem:
        raise UsageError(str(problem), param=at) from None


def _arguments(function: CalledFunction, at: str) -> dict[str, Any]:
    param = f"{at}.arguments"
    try:
        value = json.loads(function.arguments) if function.arguments.strip() else {}
        value = plain_json(value, param)
    except (ValueError, RecursionError):
        raise UsageError(f"{param} is not JSON; expected a JSON object as text.", param=param) from None
    except UsageError as problem:
        raise UsageError(str(problem), param=param) from None
    if not isinstance(value, dict):
        raise UsageError(f"{param} is JSON that is no object.", param=param)
    return value
