"""An answer of `/v1/responses`, being made: its items, and the events that tell of them.

    response.created, response.in_progress
      response.output_item.added, content_part.added, output_text.delta ..., output_text.done, content_part.done, output_item.done
      response.output_item.added, function_call_arguments.delta ..., function_call_arguments.done, output_item.done
    response.completed | response.incomplete | response.failed

Every event has a number, one more than the last one's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from herd.providers.base import Called, Calling, Event, Failed, Finished, Text, TokenLogprob, Usage
from herd.sampling.stop import StopReason
from herd.server.dates import shown
from herd.server.errors import ApiError, api_error, to_json
from herd.server.openai.wire import chat_logprobs
from herd.server.tables import new_id

COMPLETED, INCOMPLETE, FAILED = "completed", "incomplete", "failed"


class Building:
    """One answer. `push` takes what a model says, and returns the bytes that tell of it, if it is streamed.

    value      the response as clients see it, complete once `is_over`
    num_top    alternatives of each token; None: no log-probabilities
    """

    def __init__(self, value: dict[str, Any], *, num_top: int | None, is_streamed: bool) -> None:
        self.value = value
        self.is_over = False
        self._num_top = num_top
        self._is_streamed = is_streamed
        self._number = 0
        self._item: dict[str, Any] | None = None
        self._texts: list[str] = []
        self._tokens: list[TokenLogprob] = []
        self._call_id = ""
        self._arguments: list[str] = []
        self._begun_calls: set[str] = set()
        self._delta = ""

    def begin(self) -> bytes:
        self.value["status"] = "in_progress"
        return self._tell("response.created", response=self.value) + self._tell("response.in_progress", response=self.value)

    def push(self, events: Sequence[Event]) -> bytes:
        """Raises nothing: a failure is how an answer may end."""
        return b"".join(map(self._push, events))

    def fail(self, error: ApiError) -> bytes:
        """The answer cannot be completed; what was said stays."""
        closed = self._closed("incomplete")
        code = "rate_limit_exceeded" if error.status == 429 else "server_error" if error.status >= 500 else "invalid_prompt"
        return closed + self._over(FAILED, None, {"error": {"code": code, "message": error.message}})

    def last(self) -> bytes:
        """The event that tells the complete response."""
        return self._tell(f"response.{self.value['status']}", response=self.value)

    def _push(self, event: Event) -> bytes:
        match event:
            case Text(text=text, tokens=tokens):
                return self._text(text, tokens) if text or (tokens and self._num_top is not None) else b""
            case Calling(name=name, call_id=call_id, arguments=arguments):
                return self._call(name, call_id, arguments)
            case Called(call=call):
                begun = b""
                if call.id not in self._begun_calls:
                    begun = self._call(call.name, call.id, json.dumps(dict(call.arguments), ensure_ascii=False))
                return begun + (self._closed(COMPLETED) if self._call_id == call.id else b"")
            case Finished():
                return self._finished(event)
            case Failed(error=error):
                return self.fail(api_error(error))
            case _:
                return b""

    def _text(self, text: str, tokens: Sequence[TokenLogprob]) -> bytes:
        opened = b""
        if self._item is None or self._item["type"] != "message":
            item = {"id": new_id("msg_"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}
            opened = self._opened(item)
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            opened += self._tell_of_item("response.content_part.added", content_index=0, part=part)
        self._texts.append(text)
        logprobs = "[]"
        if self._num_top is not None:
            self._tokens.extend(tokens)
            logprobs = json.dumps(chat_logprobs(tokens, self._num_top)["content"], ensure_ascii=False)
        if not self._is_streamed:
            return b""
        self._number += 1
        said = json.dumps(text, ensure_ascii=False)
        return opened + f'{self._delta}{said},"logprobs":{logprobs},"sequence_number":{self._number - 1}}}\n\n'.encode("utf-8", "replace")

    def _call(self, name: str, call_id: str, arguments: str) -> bytes:
        opened = b""
        if self._call_id != call_id:
            item = {"id": new_id("fc_"), "type": "function_call", "status": "in_progress", "call_id": call_id, "name": name}
            opened = self._opened({**item, "arguments": ""})
            self._call_id = call_id
            self._begun_calls.add(call_id)
        self._arguments.append(arguments)
        if not arguments:
            return opened
        return opened + self._tell_of_item("response.function_call_arguments.delta", delta=arguments)

    def _opened(self, item: dict[str, Any]) -> bytes:
        """Begins an item; the one before is complete."""
        closed = self._closed(COMPLETED)
        self._item = item
        self.value["output"].append(item)
        self._texts, self._tokens, self._arguments = [], [], []
        place = json.dumps({"item_id": item["id"], "output_index": self._index, "content_index": 0})[1:-1]
        kind = "response.output_text.delta"
        self._delta = f'event: {kind}\ndata: {{"type":"{kind}",{place},"delta":'
        return closed + self._tell("response.output_item.added", output_index=self._index, item=item)

    def _closed(self, status: str) -> bytes:
        """Ends the item that is open, if one is."""
        item, self._item = self._item, None
        self._call_id = ""
        if item is None:
            return b""
        item["status"] = status
        said = self._closed_text(item) if item["type"] == "message" else self._closed_call(item)
        return said + self._tell("response.output_item.done", output_index=self._index, item=item)

    def _closed_text(self, item: dict[str, Any]) -> bytes:
        text = "".join(self._texts)
        logprobs = [] if self._num_top is None else chat_logprobs(self._tokens, self._num_top)["content"]
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
        item["content"] = [part]
        place = {"item_id": item["id"], "output_index": self._index, "content_index": 0}
        return self._tell("response.output_text.done", **place, text=text, logprobs=logprobs) + self._tell(
            "response.content_part.done", **place, part=part
        )

    def _closed_call(self, item: dict[str, Any]) -> bytes:
        item["arguments"] = "".join(self._arguments)
        place = {"item_id": item["id"], "output_index": self._index}
        return self._tell("response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])

    def _finished(self, event: Finished) -> bytes:
        usage = {"usage": usage_value(event.usage), "seed": event.seed}
        match event.stop_reason:
            case StopReason.LENGTH:
                closed = self._closed("incomplete")
                return closed + self._over(INCOMPLETE, None, {**usage, "incomplete_details": {"reason": "max_output_tokens"}})
            case StopReason.CANCELLED:
                self.value |= usage
                return self.fail(ApiError(503, "The answer was given up before it was complete."))
            case _:
                closed = self._closed(COMPLETED)
                return closed + self._over(COMPLETED, shown(), usage)

    def _over(self, status: str, completed: int | None, more: dict[str, Any]) -> bytes:
        self.value |= {"status": status, "completed_at": completed, **more}
        self.is_over = True
        return b""

    @property
    def _index(self) -> int:
        return len(self.value["output"]) - 1

    def _tell_of_item(self, kind: str, **fields: Any) -> bytes:
        assert self._item is not None
        return self._tell(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _tell(self, kind: str, **fields: Any) -> bytes:
        if not self._is_streamed:
            return b""
        self._number += 1
        value = {"type": kind, **fields, "sequence_number": self._number - 1}
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), to_json(value))


def usage_value(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
