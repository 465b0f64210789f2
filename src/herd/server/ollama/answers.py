"""An answer in Ollama's shape: a JSON object, or one a line; the last has `done` and tells counts and times in nanoseconds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pydantic

from herd.errors import CapacityError
from herd.providers.base import Answer, Called, Event, Failed, Finished, Text, TokenLogprob
from herd.sampling.stop import StopReason
from herd.server.errors import to_json
from herd.server.openai.wire import finite
from herd.text.tools import ToolCall

NANOSECONDS = 1_000_000_000


class AnswerReply(pydantic.BaseModel):
    """A complete answer, or one line of it. Durations are nanoseconds."""

    model: str
    created_at: str
    message: dict[str, Any] | None = None
    response: str | None = None
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[dict[str, Any]] | None = None


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def nanoseconds(seconds: float) -> int:
    return int(seconds * NANOSECONDS)


class Lines:
    """Writes one answer.

    is_chat     whether text is told as `message.content` (`/api/chat`) or as `response` (`/api/generate`)
    num_top     alternatives of each token; None: no log-probabilities
    began       `time.perf_counter()` when the request came
    load_s      seconds until the model was there
    """

    def __init__(self, model: str, *, is_chat: bool, num_top: int | None, began: float, load_s: float) -> None:
        self._model = model
        self._is_chat = is_chat
        self._num_top = num_top
        self._began = began
        self._load_s = load_s
        self._head = f'{{"model":{json.dumps(model)},"created_at":"'
        self._open = '","message":{"role":"assistant","content":' if is_chat else '","response":'
        self._close = '},"done":false' if is_chat else ',"done":false'

    def write(self, events: Sequence[Event]) -> bytes:
        """The lines for some events. Raises the error of a `Failed`."""
        lines = []
        for event in events:
            match event:
                case Text(text=text, tokens=tokens):
                    if text or (tokens and self._num_top is not None):
                        lines.append(self._text(text, tokens))
                case Called(call=call):
                    lines.append(to_json(self._value({"content": "", "tool_calls": [call_value(call, None)]}, "", done=False)) + b"\n")
                case Finished():
                    lines.append(to_json({**self._value({"content": ""}, "", done=True), **self.counts(event)}) + b"\n")
                case Failed(error=error):
                    raise error
        return b"".join(lines)

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """The complete answer."""
        texts: list[str] = []
        tokens: list[TokenLogprob] = []
        calls: list[ToolCall] = []
        async for events in answer:
            for event in events:
                match event:
                    case Text():
                        texts.append(event.text)
                        tokens.extend(event.tokens)
                    case Called(call=call):
                        calls.append(call)
                    case Finished():
                        return self._complete("".join(texts), tokens, calls, event)
                    case Failed(error=error):
                        raise error
        raise CapacityError("The answer ended before it was complete.")

    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to an empty question. reason: `load`, or `unload` where that was asked."""
        return {**self._value({"content": ""}, "", done=True), "done_reason": reason, **self._times()}

    def counts(self, event: Finished) -> dict[str, Any]:
        """What the last line tells. `CapacityError` for an answer that was taken away."""
        if event.stop_reason is StopReason.CANCELLED:
            raise CapacityError("The answer was given up before it was complete.")
        return {
            "done_reason": "length" if event.stop_reason is StopReason.LENGTH else "stop",
            **self._times(),
            "prompt_eval_count": event.usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(event.usage.prompt_s),
            "eval_count": event.usage.completion_tokens,
            "eval_duration": nanoseconds(event.usage.decode_s),
        }

    def _complete(self, text: str, tokens: list[TokenLogprob], calls: list[ToolCall], event: Finished) -> dict[str, Any]:
        message: dict[str, Any] = {"content": text}
        if calls:
            message["tool_calls"] = [call_value(call, index) for index, call in enumerate(calls)]
        value = {**self._value(message, text, done=True), **self.counts(event)}
        return value if self._num_top is None else {**value, "logprobs": logprobs(tokens, self._num_top)}

    def _text(self, text: str, tokens: Sequence[TokenLogprob]) -> bytes:
        said = json.dumps(text, ensure_ascii=False)
        more = ""
        if self._num_top is not None:
            more = ',"logprobs":' + json.dumps(logprobs(tokens, self._num_top), ensure_ascii=False)
        return f"{self._head}{now()}{self._open}{said}{self._close}{more}}}\n".encode("utf-8", "replace")

    def _value(self, message: dict[str, Any], response: str, *, done: bool) -> dict[str, Any]:
        said = {"message": {"role": "assistant", **message}} if self._is_chat else {"response": response}
        return {"model": self._model, "created_at": now(), **said, "done": done}

    def _times(self) -> dict[str, int]:
        return {"total_duration": nanoseconds(time.perf_counter() - self._began), "load_duration": nanoseconds(self._load_s)}


def call_value(call: ToolCall, index: int | None) -> dict[str, Any]:
    """A call; `index` in a complete answer, where all calls are one list."""
    place = {} if index is None else {"index": index}
    return {"id": call.id, "function": {**place, "name": call.name, "arguments": dict(call.arguments)}}


def logprobs(tokens: Sequence[TokenLogprob], num_top: int) -> list[dict[str, Any]]:
    """Of each token its text, bytes and log-probability, and those of its alternatives."""
    found = []
    for token in tokens:
        entry = _entry(token.data, token.logprob)
        if num_top:
            others = zip(token.top[:num_top], token.top_data[:num_top], strict=False)
            entry["top_logprobs"] = [_entry(data, logprob) for (_, logprob), data in others]
        found.append(entry)
    return found


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": data.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(data)}
