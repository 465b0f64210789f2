"""Meta's own `ChatFormat` (package llama-models) for Llama 3 and for Llama 4: what `format="meta"` gives.

Against the published templates: nothing is added (no system message, no date), contents are taken as they are, and every piece
(header, each part of the content, each call) is encoded on its own. A call ends with `<|eom_id|>` or `<|eom|>` where the message
says that its turn goes on; in Llama 4 always, and so do results of tools.

How functions are offered is no part of `ChatFormat`; here it is done as Meta's pages on prompts show: JSON calls for 3.1, calls in
Python's notation from 3.2 on.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

from herd.errors import UsageError
from herd.records import dataclass
from herd.text.formats import languages, prompts
from herd.text.formats.begun import Head
from herd.text.formats.llama3 import DATE, Llama3
from herd.text.formats.llama4 import Llama4, expand_llama4
from herd.text.formats.parts import ChatFormat, Control, Conversation, Grid, Part
from herd.text.messages import Message, Role, Text
from herd.text.tools import BuiltIn, Tool, ToolCall

_SEARCH = (BuiltIn.BRAVE_SEARCH.value, BuiltIn.WOLFRAM_ALPHA.value)
Piece = tuple[Part, ...]


@dataclass(frozen=True)
class _Meta(ChatFormat):
    """What the two have in common."""

    def parts(self, conversation: Conversation) -> Iterator[Part]:
        """The prompt for people; its pieces are encoded one by one."""
        for piece in self.pieces(conversation):
            yield from piece

    def pieces(self, conversation: Conversation) -> Iterator[Piece]:
        yield (Control("<|begin_of_text|>"),)
        for message in self._with_tools(conversation):
            yield from self._message(message)
        if conversation.add_generation_prompt:
            yield tuple(self.header())

    @abstractmethod
    def _with_tools(self, conversation: Conversation) -> Sequence[Message]:
        """The messages, with tools where this format tells of them."""

    @abstractmethod
    def _message(self, message: Message) -> Iterator[Piece]:
        """One message, header to end."""

    def _contents(self, message: Message) -> Iterator[Piece]:
        for part in message.parts:
            yield (part.text,) if isinstance(part, Text) else (Control(self.image_token),)


@final
@dataclass(frozen=True)
class MetaLlama3(_Meta):
    """pythonic: functions are offered and called in Python's notation (Llama 3.2 and 3.3), not as JSON (3.1)."""

    pythonic: bool = False

    image_token = "<|image|>"
    marks = Llama3.marks
    ends = Llama3.ends

    @property
    def name(self) -> str:
        return "meta-llama3"

    def header(self) -> Sequence[Part]:
        return _header3("assistant")

    def call_grammar(self, tools: Sequence[Tool | BuiltIn], *, parallel: bool = True) -> str:
        """A list of calls in Python's notation, or one call as JSON (3.1); a built-in tool behind its control token."""
        grammar = languages.Grammar()
        calls = languages.built_in_calls(grammar, tools, self.mark("<|python_tag|>"))
        functions = [tool for tool in tools if isinstance(tool, Tool)]
        if functions and self.pythonic:
            calls.append(languages.python_calls(grammar, functions, parallel=parallel))
        elif functions:
            calls += languages.json_calls(grammar, functions, typed=True)
        return grammar.text(" | ".join(calls))

    def call_heads(self, tools: Sequence[Tool | BuiltIn]) -> Mapping[str, Head]:
        heads = languages.python_heads(tools) if self.pythonic else languages.json_heads(tools, typed=True)
        return heads | languages.built_in_heads(tools, "<|python_tag|>")

    def _message(self, message: Message) -> Iterator[Piece]:
        yield _header3("ipython" if message.role is Role.TOOL else message.role.value)
        if message.tool_calls and message.tool_calls[0].name == BuiltIn.CODE_INTERPRETER.value:
            yield (Control("<|python_tag|>"),)
        yield from self._contents(message)
        for call in message.tool_calls:
            yield (_call(call, pythonic=self.pythonic),)
        goes_on = message.role is Role.ASSISTANT and message.ends_turn is False
        yield (Control("<|eom_id|>" if goes_on else "<|eot_id|>"),)

    def _with_tools(self, conversation: Conversation) -> Sequence[Message]:
        messages = list(conversation.messages)
        lines = []
        if conversation.built_ins or (conversation.tools and not self.pythonic):
            lines.append("Environment: ipython\n")
            search = [tool.value for tool in conversation.built_ins if tool.value in _SEARCH]
            lines.append(f"Tools: {', '.join(search)}\n" if search else "\n")
        if lines or conversation.date is not None:
            lines.append(f"Cutting Knowledge Date: December 2023\nToday Date: {conversation.date or DATE}\n\n")
        if conversation.tools and self.pythonic:
            lines.append(prompts.meta_python_functions(conversation.tools, llama4=False))
        messages = _with_system("".join(lines), messages)
        if conversation.tools and not self.pythonic:
            at = 1 if messages[0].role is Role.SYSTEM else 0
            messages.insert(at, Message(Role.USER, prompts.meta_json_functions(conversation.tools)))
        return messages


@final
@dataclass(frozen=True)
class MetaLlama4(_Meta):
    """pythonic: calls of earlier messages are written in Python's notation, as functions are offered; else as JSON."""

    pythonic: bool = True

    image_token = Llama4.image_token
    marks = Llama4.marks
    ends = Llama4.ends

    @property
    def name(self) -> str:
        return "meta-llama4"

    def header(self) -> Sequence[Part]:
        return Llama4(self.tokenizer).header()

    def call_grammar(self, tools: Sequence[Tool | BuiltIn], *, parallel: bool = True) -> str:
        """A list of calls in Python's notation, as functions are offered; JSON, if that is how calls are written."""
        grammar = languages.Grammar()
        if self.pythonic:
            return grammar.text(languages.python_calls(grammar, tools, parallel=parallel))
        return grammar.text(" | ".join(languages.json_calls(grammar, tools, typed=True)))

    def call_heads(self, tools: Sequence[Tool | BuiltIn]) -> Mapping[str, Head]:
        return languages.python_heads(tools) if self.pythonic else languages.json_heads(tools, typed=True)

    def expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        return expand_llama4(self.tokenizer, ids, grids)

    def _message(self, message: Message) -> Iterator[Piece]:
        yield _header4("ipython" if message.role is Role.TOOL else message.role.value)
        yield from self._contents(message)
        for call in message.tool_calls:
            yield (_call(call, pythonic=self.pythonic),)
        goes_on = message.role is Role.TOOL or bool(message.tool_calls) or message.ends_turn is False
        yield (Control("<|eom|>" if goes_on else "<|eot|>"),)

    def _with_tools(self, conversation: Conversation) -> Sequence[Message]:
        for tool in conversation.built_ins:
            raise UsageError(f"the built-in tool {tool.value} is offered; Meta's format for Llama 4 knows functions only.")
        messages = list(conversation.messages)
        if not conversation.tools:
            return messages
        return _with_system(prompts.meta_python_functions(conversation.tools, llama4=True), messages)


def _header3(role: str) -> Piece:
    return Control("<|start_header_id|>"), role, Control("<|end_header_id|>"), "\n\n"


def _header4(role: str) -> Piece:
    return Control("<|header_start|>"), role, Control("<|header_end|>"), "\n\n"


def _with_system(text: str, messages: list[Message]) -> list[Message]:
    """The conversation with `text` in front of its system message."""
    if not text:
        return messages
    if messages[0].role is not Role.SYSTEM:
        return [Message(Role.SYSTEM, text.rstrip("\n")), *messages]
    joined = text if text.endswith("\n") else f"{text}\n\n"
    return [replace(messages[0], content=joined + messages[0].text), *messages[1:]]


def _call(call: ToolCall, *, pythonic: bool) -> str:
    if call.name in _SEARCH and "query" in call.arguments:
        return f'{call.name}.call(query="{call.arguments["query"]}")'
    if call.name == BuiltIn.CODE_INTERPRETER.value and isinstance(call.arguments.get("code"), str):
        return str(call.arguments["code"])
    if pythonic:
        return f"[{call.name}({', '.join(f'{name}={_python(value)}' for name, value in call.arguments.items())})]"
    return json.dumps({"type": "function", "name": call.name, "parameters": call.arguments})


def _python(value: Any) -> str:
    """As Meta's code writes values: texts without escapes, `=` inside dictionaries."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_python, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}={_python(item)}' for key, item in value.items())}}}"
    return str(value)
