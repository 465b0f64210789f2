"""Items of a conversation as `/v1/responses` has them, and the messages that they become.

    message, function_call, function_call_output    in: from the client, and from stored answers
    message, function_call                          out: what a model said

What an assistant said and the calls it made after that are one message for the model, as they were one answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from herd.errors import UsageError
from herd.server.branches import by_shape, by_type
from herd.server.openai.fields import CACHE_IS_AUTOMATIC, Name
from herd.server.reading import Body
from herd.server.settings import LIMITS
from herd.server.tables import new_id
from herd.text.messages import Content, Image, Message, Role, Text
from herd.text.tools import ToolCall, plain_json, tool_name

_CACHE = {"prompt_cache_breakpoint": CACHE_IS_AUTOMATIC}
_OWN = {"id": "items get ids of their own", "status": "an item that is sent is complete"}


class InputText(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = _CACHE

    type: Literal["input_text"]
    text: str


class OutputText(Body):
    """What an earlier answer said."""

    HARMLESS: ClassVar[Mapping[str, str]] = {
        "annotations": "what an earlier answer cited is in its text as far as a model reads it",
        "logprobs": "how likely an earlier answer was changes nothing for the next",
    }

    type: Literal["output_text"]
    text: str


class Refusal(Body):
    """What an earlier answer refused with."""

    type: Literal["refusal"]
    refusal: str


class InputImage(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {
        **_CACHE,
        "detail": "how finely a picture is looked at is fixed by how each model was trained",
    }
    REFUSED: ClassVar[Mapping[str, str]] = {"file_id": "send the picture itself, as a data: URL."}

    type: Literal["input_image"]
    image_url: Annotated[str, Field(min_length=1)]


Part = Annotated[
    Annotated[InputText, Tag("InputText")]
    | Annotated[InputImage, Tag("InputImage")]
    | Annotated[OutputText, Tag("OutputText")]
    | Annotated[Refusal, Tag("Refusal")],
    by_type(input_text="InputText", input_image="InputImage", output_text="OutputText", refusal="Refusal"),
]
Parts = Annotated[Annotated[str, Tag("Text")] | Annotated[list[Part], Tag("List")], by_shape()]
ResultPart = Annotated[Annotated[InputText, Tag("InputText")], by_type(input_text="InputText")]
ResultParts = Annotated[Annotated[str, Tag("Text")] | Annotated[list[ResultPart], Tag("List")], by_shape()]


class MessageItem(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {**_OWN, "phase": "Llamas say nothing before their answer that is not part of it"}

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts


class CallItem(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {**_OWN, "caller": "every call here was asked for by the model itself"}
    REFUSED: ClassVar[Mapping[str, str]] = {"namespace": "tools have plain names here.", "async": "calls are answered in the next request."}

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str


class ResultItem(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {**_OWN, "caller": "every call here was asked for by the model itself"}
    REFUSED: ClassVar[Mapping[str, str]] = {"namespace": "tools have plain names here."}

    type: Literal["function_call_output"]
    call_id: Name
    output: ResultParts
    name: Name | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("MessageItem")] | Annotated[CallItem, Tag("CallItem")] | Annotated[ResultItem, Tag("ResultItem")],
    by_type("message", message="MessageItem", function_call="CallItem", function_call_output="ResultItem"),
]
AnyItem = MessageItem | CallItem | ResultItem
Items = Annotated[
    Annotated[str, Tag("Text")] | Annotated[list[Item], Field(max_length=LIMITS.messages), Tag("List")],
    by_shape(),
]


class ItemList(Body):
    """Stored items, read again as they were sent."""

    items: list[Item]


def listed(given: str | Sequence[AnyItem]) -> list[AnyItem]:
    """A text is a user's message."""
    return [MessageItem(role="user", content=given)] if isinstance(given, str) else list(given)


def stored_value(item: AnyItem) -> dict[str, Any]:
    """An item as it is kept and listed: with an id, and its texts as parts."""
    value = item.model_dump(by_alias=True, exclude_none=True)
    match item:
        case MessageItem():
            if isinstance(item.content, str):
                kind = "output_text" if item.role == "assistant" else "input_text"
                value["content"] = [{"type": kind, "text": item.content, **({"annotations": []} if kind == "output_text" else {})}]
            return {"id": new_id("msg_"), **value, "status": "completed"}
        case CallItem():
            return {"id": new_id("fc_"), **value, "status": "completed"}
        case _:
            return {"id": new_id("fco_"), **value, "status": "completed"}


def to_messages(items: Iterable[AnyItem], at: str = "input") -> list[Message]:
    """The conversation as models read it; pictures still by their addresses. `UsageError` names the item that makes no sense."""
    found: list[Message] = []
    called: set[str] = set()
    for index, item in enumerate(items):
        where = f"{at}.{index}"
        message = _message(item, where)
        if message.role is Role.TOOL and message.tool_call_id not in called:
            raise UsageError(f"{where} answers a call that no item before it made.", param=f"{where}.call_id")
        called |= {call.id for call in message.tool_calls}
        _join(found, message)
    if sum(len(message.images) for message in found) > LIMITS.pictures:
        raise UsageError(f"The conversation has more than {LIMITS.pictures} pictures.", param=at)
    return found


def _message(item: AnyItem, at: str) -> Message:
    match item:
        case MessageItem():
            role = Role.SYSTEM if item.role in ("system", "developer") else Role(item.role)
            return Message(role, _content(item.content, role, at))
        case CallItem():
            return Message(Role.ASSISTANT, "", (ToolCall(item.call_id, _named(item.name, at), _arguments(item.arguments, at)),))
        case ResultItem():
            output = item.output if isinstance(item.output, str) else "".join(part.text for part in item.output)
            return Message(Role.TOOL, output, (), item.call_id, None if item.name is None else _named(item.name, at))


def _content(given: str | Sequence[InputText | InputImage | OutputText | Refusal], role: Role, at: str) -> Content:
    if isinstance(given, str):
        return given
    parts: list[Text | Image] = []
    for index, part in enumerate(given):
        match part:
            case InputImage():
                if role is not Role.USER:
                    where = f"{at}.content.{index}"
                    raise UsageError(f"{where} is a picture in a message of the role {role.value}; only a user shows them.", param=where)
                parts.append(Image(part.image_url))
            case Refusal():
                parts.append(Text(part.refusal))
            case _:
                parts.append(Text(part.text))
    if all(isinstance(part, Text) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, Text))
    return tuple(parts)


def _join(found: list[Message], message: Message) -> None:
    """Adds a message; calls go to what the assistant said before them."""
    last = found[-1] if found else None
    if last is not None and message.tool_calls and last.role is Role.ASSISTANT:
        found[-1] = Message(Role.ASSISTANT, last.content, (*last.tool_calls, *message.tool_calls))
    else:
        found.append(message)


def _named(name: str, at: str) -> str:
    try:
        return tool_name(name, f"{at}.name")
    except UsageError as problem:
        raise UsageError(str(problem), param=f"{at}.name") from None


def _arguments(text: str, at: str) -> dict[str, Any]:
    param = f"{at}.arguments"
    try:
        value = plain_json(json.loads(text) if text.strip() else {}, param)
    except (ValueError, RecursionError):
        raise UsageError(f"{param} is not JSON; expected a JSON object as text.", param=param) from None
    except UsageError as problem:
        raise UsageError(str(problem), param=param) from None
    if not isinstance(value, dict):
        raise UsageError(f"{param} is JSON that is no object.", param=param)
    return value
