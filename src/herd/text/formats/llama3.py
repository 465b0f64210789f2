"""Llama 3 and its successors up to 3.3: a frame of control tokens around each message, as the published templates write it.

    <|begin_of_text|> ( <|start_header_id|>role<|end_header_id|>\\n\\n content <|eot_id|> )*

    llama3          April 2024: nothing but the frame
    llama3.1        also 3.3: always a system message, with two lines on dates; tools; results of tools (role `ipython`, JSON-quoted)
    llama3.2        1B and 3B: the same without the built-in search tools
    llama3.2-vision the same with pictures: `<|image|>` where the picture stands. Contents are not stripped there

Else contents are stripped at both ends. Functions are described in the first user message, as the templates do by default; a call
is the whole of an assistant's message (text beside it is not written, as in the templates).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import final

from herd.errors import UsageError
from herd.records import dataclass
from herd.text.formats import languages, prompts
from herd.text.formats.begun import Head
from herd.text.formats.calls import write_built_in, write_json
from herd.text.formats.parsing import Marks
from herd.text.formats.parts import ChatFormat, Control, Conversation, Part, only_call, refuse_tools
from herd.text.messages import Message, Role
from herd.text.tools import BuiltIn, Tool

DATE = "26 Jul 2024"
"""Today, for a model that is told none: the date that the templates of Llama 3.1 to 3.3 fall back on."""
VERSIONS = ("llama3", "llama3.1", "llama3.2", "llama3.2-vision")
_BEGIN, _END, _CALL_END = Control("<|begin_of_text|>"), Control("<|eot_id|>"), Control("<|eom_id|>")
_HEADER, _HEADER_END = Control("<|start_header_id|>"), Control("<|end_header_id|>")
_PYTHON, _IMAGE = Control("<|python_tag|>"), "<|image|>"


@final
@dataclass(frozen=True)
class Llama3(ChatFormat):
    """version: one of `VERSIONS`."""

    version: str = "llama3"

    marks = Marks(begin=_PYTHON.name)
    ends = (_END.name, _CALL_END.name, "<|end_of_text|>")

    @property
    def name(self) -> str:
        return self.version

    @property
    def image_token(self) -> str:  # type: ignore[override]
        return _IMAGE if self.version == "llama3.2-vision" else ""

    def header(self) -> Sequence[Part]:
        return tuple(_header("assistant"))

    def call_grammar(self, tools: Sequence[Tool | BuiltIn], *, parallel: bool = True) -> str:
        """One call: a message of this format has no more."""
        if self.version == "llama3":
            return super().call_grammar(tools)
        grammar = languages.Grammar()
        calls = languages.json_calls(grammar, tools) + languages.built_in_calls(grammar, tools, self.mark(_PYTHON.name))
        return grammar.text(" | ".join(calls))

    def call_heads(self, tools: Sequence[Tool | BuiltIn]) -> Mapping[str, Head]:
        return languages.json_heads(tools) | languages.built_in_heads(tools, _PYTHON.name)

    def parts(self, conversation: Conversation) -> Iterator[Part]:
        """The date is `26 Jul 2024` if none is given; Llama 3 of April 2024 is told none at all."""
        yield _BEGIN
        messages: list[tuple[int, Message]] = list(enumerate(conversation.messages))
        if self.version == "llama3":
            refuse_tools(conversation, self.name)
        else:
            self._check(conversation)
            system = messages.pop(0)[1] if conversation.messages[0].role is Role.SYSTEM else None
            if system is not None or not conversation.images:
                yield from self._system(conversation, system.text.strip() if system is not None else "")
        if conversation.tools:
            yield from self._with_tools(conversation, messages)
        for index, message in messages:
            yield from self._message(index, message, conversation)
        if conversation.add_generation_prompt:
            yield from _header("assistant")

    def _check(self, conversation: Conversation) -> None:
        if conversation.images and conversation.has_tools:
            what = f"tools are offered beside a picture; the chat format {self.name} calls tools in text-only chats."
            raise UsageError(what, param="tools")
        search = [tool.value for tool in conversation.built_ins if tool is not BuiltIn.CODE_INTERPRETER]
        if search and self.version != "llama3.1":
            raise UsageError(f"the built-in tool {search[0]} is offered; the chat format {self.name} knows only code_interpreter.")

    def _system(self, conversation: Conversation, text: str) -> Iterator[Part]:
        lines = ["Environment: ipython\n"] if conversation.has_tools else []
        if conversation.built_ins and self.version == "llama3.1":
            names = [tool.value for tool in conversation.built_ins if tool is not BuiltIn.CODE_INTERPRETER]
            lines.append(f"Tools: {', '.join(names)}\n\n")
        lines.append(f"Cutting Knowledge Date: December 2023\nToday Date: {conversation.date or DATE}\n\n")
        yield from _framed("system", "".join(lines) + text)

    def _with_tools(self, conversation: Conversation, messages: list[tuple[int, Message]]) -> Iterator[Part]:
        """The first message, with the functions in front of it."""
        if not messages or messages[0][1].role is not Role.USER:
            raise UsageError(f"tools are offered; the chat format {self.name} describes them in the first message, which must be a user's.")
        _, first = messages.pop(0)
        yield from _framed("user", prompts.json_functions(conversation.tools) + first.text.strip())

    def _message(self, index: int, message: Message, conversation: Conversation) -> Iterator[Part]:
        if message.role is Role.TOOL:
            yield from _framed("ipython", json.dumps(message.text, ensure_ascii=False))
        elif message.tool_calls:
            yield from self._call(index, message, conversation)
        else:
            yield from _header(message.role.value)
            yield from self.content(message, strip=self.version != "llama3.2-vision")
            yield _END

    def _call(self, index: int, message: Message, conversation: Conversation) -> Iterator[Part]:
        call = only_call(index, message, self.name)
        is_built_in = self.version == "llama3.1" and call.name in {tool.value for tool in conversation.built_ins}
        yield from _header("assistant")
        if is_built_in:
            yield from (_PYTHON, write_built_in(call))
        else:
            yield write_json(call)
        yield _CALL_END if conversation.built_ins and self.version == "llama3.1" else _END


def _header(role: str) -> Iterator[Part]:
    yield from (_HEADER, role, _HEADER_END, "\n\n")


def _framed(role: str, content: str) -> Iterator[Part]:
    yield from _header(role)
    yield content
    yield _END
