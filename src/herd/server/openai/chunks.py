"""Streamed answers, piece by piece: events of a model become chunks of JSON that are written from a prepared frame.

    data: {"id":...,"choices":[{"index":0,"delta":{"content":  "Hel"  },"logprobs":null,"finish_reason":null}]}
    '------------------- prepared once ------------------------'   '------------ prepared once -------------'

For each piece only its text is turned into JSON. All events of one step of the engine become one piece of HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring
from typing import Any

from herd.providers.base import Called, Calling, Event, Failed, Finished, Text, TokenLogprob, Usage
from herd.server.openai.wire import TextLogprobs, chat_logprobs, finish_reason, usage_value
from herd.server.streaming import DONE
from herd.text.tools import ToolCall

PADDED_BYTES = 64
"""Padded chunks have a multiple of this many bytes."""

_FILLER = "x" * PADDED_BYTES
_text = encode_basestring
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


class Frame:
    """What the chunks of one request share.

    head        id, object, created, model and fingerprint
    seed        what the answers are drawn with; the first chunk of each tells it
    has_usage   whether each chunk says that usage is still to come
    is_counted  whether each chunk tells the tokens of its answer so far instead
    is_padded   whether each chunk gets an `obfuscation` of such a length that its size tells little of its text
    """

    def __init__(
        self, head: dict[str, Any], seed: int, *, has_usage: bool = False, is_counted: bool = False, is_padded: bool = False
    ) -> None:
        self.seed = f',"seed":{seed}'
        self.is_counted = is_counted
        self._begin = "data: " + _json(head)[:-1] + ',"choices":['
        self._end = ',"usage":null}\n\n' if has_usage and not is_counted else "}\n\n"
        self._is_padded = is_padded

    def around(self, choice_open: str, choice_close: str) -> tuple[str, str] | None:
        """What stands before and after a text in a chunk of it, where that is always the same."""
        if self._is_padded or self.is_counted:
            return None
        return self._begin + choice_open, f"{choice_close}]{self._end}"

    def chunk(self, choice: str, more: str = "") -> str:
        """A chunk with one choice, which is JSON already. more: further fields of the chunk, each after a comma."""
        if self._is_padded:
            size = len(choice.encode("utf-8", "replace")) + len(more)
            more += f',"obfuscation":"{_FILLER[: -size % PADDED_BYTES]}"'
        return f"{self._begin}{choice}]{more}{self._end}"

    def last(self, usage: dict[str, Any]) -> str:
        """The chunk that has no choice, but counts."""
        return f'{self._begin}],"usage":{_json(usage)}}}\n\n'


class Thread:
    """The chunks of one answer within a frame: what the first of them has besides, and what is counted so far."""

    def __init__(self, frame: Frame, prompt_tokens: int) -> None:
        self.frame = frame
        self._seed = frame.seed
        self._prompt_tokens = prompt_tokens
        self._tokens = 0

    def chunk(self, choice: str, num_tokens: int = 0) -> str:
        """A chunk with one choice, which is JSON already. num_tokens: how many tokens came with it."""
        more, self._seed = self._seed, ""
        if self.frame.is_counted:
            self._tokens += num_tokens
            total = self._prompt_tokens + self._tokens
            more += f',"usage":{{"prompt_tokens":{self._prompt_tokens},"completion_tokens":{self._tokens},"total_tokens":{total}}}'
        return self.frame.chunk(choice, more)


class ChatChunks:
    """The chunks of one answer of a chat.

    num_top        alternatives of each token; None: no log-probabilities at all
    is_deprecated  whether a call is told as `function_call`
    """

    def __init__(
        self, frame: Frame, index: int, prompt_tokens: int = 0, *, num_top: int | None = None, is_deprecated: bool = False
    ) -> None:
        self._thread = Thread(frame, prompt_tokens)
        self._num_top = num_top
        self._is_deprecated = is_deprecated
        self._open = f'{{"index":{index},"delta":{{'
        self._close = '},"logprobs":null,"finish_reason":null}'
        self._text_open = self._open + '"content":'
        self._around = frame.around(self._text_open, self._close) if num_top is None else None
        self._has_begun = False
        self._calls_begun = 0
        self._calls_done = 0
        self.usage: Usage | None = None

    def push(self, events: Sequence[Event]) -> bytes:
        """All that these events say. Raises what made the answer fail."""
        if len(events) == 1 and self._has_begun and type(first := events[0]) is Text and self._around is not None:
            begin, end = self._around
            return f"{begin}{_text(first.text)}{end}".encode("utf-8", "replace") if first.text else b""
        made: list[str] = []
        if not self._has_begun:
            self._has_begun = True
            made.append(self._delta('"role":"assistant","content":"","refusal":null'))
        made.extend(self._text(event) if type(event) is Text else self._other(event) for event in events)
        return "".join(made).encode("utf-8", "replace")

    def _text(self, event: Text) -> str:
        if self._num_top is not None:
            return self._with_logprobs(event.text, event.tokens, self._num_top)
        if not event.text and not (event.tokens and self._thread.frame.is_counted):
            return ""
        return self._thread.chunk(f"{self._text_open}{_json(event.text)}{self._close}", len(event.tokens))

    def _with_logprobs(self, text: str, tokens: tuple[TokenLogprob, ...], num_top: int) -> str:
        if not text and not tokens:
            return ""
        said = f'"content":{_json(text)}' if text else ""
        told = _json(chat_logprobs(tokens, num_top))
        return self._thread.chunk(f'{self._open}{said}}},"logprobs":{told},"finish_reason":null}}', len(tokens))

    def _other(self, event: Event) -> str:
        match event:
            case Calling():
                return self._calling(event)
            case Called():
                return self._called(event.call)
            case Finished():
                return self._finished(event)
            case Failed():
                raise event.error
            case _:
                return ""

    def _calling(self, event: Calling) -> str:
        is_new = event.index >= self._calls_begun
        self._calls_begun = max(self._calls_begun, event.index + 1)
        return self._call(event.index, event.call_id if is_new else None, event.name, event.arguments)

    def _called(self, call: ToolCall) -> str:
        """A call whose pieces were said needs no more words."""
        index, self._calls_done = self._calls_done, self._calls_done + 1
        if index < self._calls_begun:
            return ""
        self._calls_begun = index + 1
        return self._call(index, call.id, call.name, arguments_text(call))

    def _call(self, index: int, call_id: str | None, name: str, arguments: str) -> str:
        """call_id: of a call's first piece."""
        if self._is_deprecated:
            function = {"name": name, "arguments": arguments} if call_id is not None else {"arguments": arguments}
            return self._delta(f'"function_call":{_json(function)}')
        piece: dict[str, Any] = {"index": index}
        if call_id is not None:
            piece |= {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        else:
            piece["function"] = {"arguments": arguments}
        return self._delta(f'"tool_calls":[{_json(piece)}]')

    def _finished(self, event: Finished) -> str:
        self.usage = event.usage
        reason = chat_reason(event, self._calls_begun > 0, self._is_deprecated)
        return self._thread.chunk(f'{self._open}}},"logprobs":null,"finish_reason":"{reason}"}}')

    def _delta(self, fields: str) -> str:
        return self._thread.chunk(f"{self._open}{fields}{self._close}")


class TextChunks:
    """The chunks of one continued text. echo: the prompt's text, which comes first."""

    def __init__(self, frame: Frame, index: int, prompt_tokens: int = 0, *, num_top: int | None = None, echo: str = "") -> None:
        self._thread = Thread(frame, prompt_tokens)
        self._logprobs = None if num_top is None else TextLogprobs(num_top)
        self._echo = echo
        self._begin = f'{{"index":{index},"text":'
        self._around = frame.around(self._begin, ',"logprobs":null,"finish_reason":null}') if num_top is None else None
        self._has_begun = False
        self.usage: Usage | None = None

    def push(self, events: Sequence[Event]) -> bytes:
        """All that these events say. Raises what made the answer fail."""
        if len(events) == 1 and self._has_begun and type(first := events[0]) is Text and self._around is not None:
            begin, end = self._around
            return f"{begin}{_text(first.text)}{end}".encode("utf-8", "replace") if first.text else b""
        said = "".join(map(self._event, events))
        self._has_begun = self._has_begun or bool(said)  # the first chunk has the seed, and the prompt's echo
        return said.encode("utf-8", "replace")

    def _event(self, event: Event) -> str:
        match event:
            case Text():
                return self._text(event.text, event.tokens, len(event.tokens))
            case Finished():
                self.usage = event.usage
                before = self._text("", (), 0) if self._echo else ""
                return before + self._thread.chunk(
                    f'{self._begin}"","logprobs":null,"finish_reason":"{finish_reason(event.stop_reason)}"}}'
                )
            case Failed():
                raise event.error
            case Calling() | Called():
                return ""
            case _:
                return self._text("", event.tokens, 0)

    def _text(self, text: str, tokens: tuple[TokenLogprob, ...], num_new: int) -> str:
        """num_new: how many of the tokens are the answer's."""
        text, self._echo = self._echo + text, ""
        logprobs = "null" if self._logprobs is None or not tokens else _json(self._logprobs.push(tokens))
        if not text and logprobs == "null" and not (num_new and self._thread.frame.is_counted):
            return ""
        return self._thread.chunk(f'{self._begin}{_json(text)},"logprobs":{logprobs},"finish_reason":null}}', num_new)


def chat_reason(event: Finished, has_calls: bool, is_deprecated: bool) -> str:
    """Why a chat's answer ended. One that was cut off while it called says so."""
    reason = finish_reason(event.stop_reason)
    if not has_calls or reason == "length":
        return reason
    return "function_call" if is_deprecated else "tool_calls"


def arguments_text(call: ToolCall) -> str:
    """A call's arguments as JSON text."""
    return json.dumps(dict(call.arguments), ensure_ascii=False)


def closing(frame: Frame, usages: Sequence[Usage], *, has_usage: bool, prompts: int = 1) -> bytes:
    """The end of a stream."""
    counted = frame.last(usage_value(usages, prompts)).encode("utf-8", "replace") if has_usage else b""
    return counted + DONE
