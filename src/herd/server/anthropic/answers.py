"""An answer in Anthropic's shape: blocks in a message, or events that open, fill and close them.

Accepted              message_start
Text                  content_block_start (text), content_block_delta (text_delta) ..., content_block_stop
Calling ... Called    content_block_start (tool_use), content_block_delta (input_json_delta) ..., content_block_stop
Finished              message_delta (stop_reason, usage), message_stop
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pydantic

from herd.errors import CapacityError
from herd.providers.base import Accepted, Answer, Called, Calling, Event, Failed, Finished, Text, Usage
from herd.sampling.stop import StopReason
from herd.server.errors import to_json
from herd.server.tables import new_id

PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class UsageReply(pydantic.BaseModel):
    """`input_tokens` are those that were computed; those found in the cache are counted apart."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class BlockReply(pydantic.BaseModel):
    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class MessageReply(pydantic.BaseModel):
    """A complete answer."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[BlockReply]
    stop_reason: str | None
    stop_sequence: str | None
    usage: UsageReply


class CountReply(pydantic.BaseModel):
    input_tokens: int


def message_value(key: str, model: str, content: list[dict[str, Any]], finished: Finished, stopped: str) -> dict[str, Any]:
    return {
        "id": key,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stopped,
        "stop_sequence": finished.stop_text,
        "usage": usage_value(finished.usage),
    }


def usage_value(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }


def stop_reason(finished: Finished, has_calls: bool, max_tokens: int) -> str:
    """Why the answer ended. `CapacityError` for one that was taken away."""
    match finished.stop_reason:
        case StopReason.STOP_TEXT:
            return "stop_sequence"
        case StopReason.LENGTH:
            return "max_tokens" if finished.usage.completion_tokens >= max_tokens else "model_context_window_exceeded"
        case StopReason.CANCELLED:
            raise CapacityError("The answer was given up before it was complete.")
        case StopReason.END:
            return "tool_use" if has_calls else "end_turn"


async def whole_message(answer: Answer, model: str, max_tokens: int) -> dict[str, Any]:
    """The complete answer as a message."""
    content: list[dict[str, Any]] = []
    async for events in answer:
        for event in events:
            match event:
                case Text(text=text) if text:
                    if not content or content[-1]["type"] != "text":
                        content.append({"type": "text", "text": ""})
                    content[-1]["text"] += text
                case Called(call=call):
                    content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)})
                case Failed(error=error):
                    raise error
                case Finished():
                    has_calls = any(block["type"] == "tool_use" for block in content)
                    return message_value(new_id("msg_"), model, content, event, stop_reason(event, has_calls, max_tokens))
    raise CapacityError("The answer ended before it was complete.")


class Events:
    """Writes the events of one answer."""

    def __init__(self, model: str, max_tokens: int) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._index = -1
        self._open = ""
        self._id = ""
        self._calls: dict[str, str] = {}
        self._delta = b""

    def begin(self, accepted: Accepted) -> bytes:
        usage = {
            "input_tokens": accepted.prompt_tokens,
            "output_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        }
        message: dict[str, Any] = {"id": new_id("msg_"), "type": "message", "role": "assistant", "model": self._model, "content": []}
        message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", {"message": message}) + PING

    def write(self, events: Iterable[Event]) -> bytes:
        """The bytes for some events. Raises the error of a `Failed`."""
        pieces: list[bytes] = []
        for event in events:
            match event:
                case Text(text=text):
                    if text:
                        pieces.append(self._opened("text", "", {"type": "text", "text": ""}))
                        pieces.append(self._text(text))
                case Calling(name=name, call_id=call_id, arguments=arguments):
                    pieces.append(self._call(name, call_id, arguments))
                case Called(call=call):
                    if call.id not in self._calls:
                        pieces.append(self._call(call.name, call.id, json.dumps(dict(call.arguments), ensure_ascii=False)))
                case Finished():
                    pieces.append(self._end(event))
                case Failed(error=error):
                    raise error
        return b"".join(pieces)

    def _text(self, text: str) -> bytes:
        return self._delta + to_json(text) + b"}}\n\n"

    def _call(self, name: str, call_id: str, arguments: str) -> bytes:
        opened = b""
        if self._open != "tool_use" or self._id != call_id:
            self._calls[call_id] = name
            opened = self._opened("tool_use", call_id, {"type": "tool_use", "id": call_id, "name": name, "input": {}})
        if not arguments:
            return opened
        return opened + _event(
            "content_block_delta", {"index": self._index, "delta": {"type": "input_json_delta", "partial_json": arguments}}
        )

    def _opened(self, kind: str, key: str, block: dict[str, Any]) -> bytes:
        """Opens a block, unless it is open; what was open before is closed."""
        if self._open == kind and self._id == key:
            return b""
        closed = self._closed()
        self._open, self._id = kind, key
        self._index += 1
        if kind == "text":
            begun = f'{{"type":"content_block_delta","index":{self._index},"delta":{{"type":"text_delta","text":'
            self._delta = b"event: content_block_delta\ndata: " + begun.encode()
        return closed + _event("content_block_start", {"index": self._index, "content_block": block})

    def _closed(self) -> bytes:
        if not self._open:
            return b""
        self._open = self._id = ""
        return _event("content_block_stop", {"index": self._index})

    def _end(self, finished: Finished) -> bytes:
        reason = stop_reason(finished, bool(self._calls), self._max_tokens)
        delta = {"delta": {"stop_reason": reason, "stop_sequence": finished.stop_text}, "usage": usage_value(finished.usage)}
        return self._closed() + _event("message_delta", delta) + _event("message_stop", {})


def _event(kind: str, value: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), to_json({"type": kind, **value}))
