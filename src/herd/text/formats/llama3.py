"""Llama 3 and its successors up to 3.3: a frame of control tokens around each message.

    <|begin_of_text|> ( <|start_header_id|>role<|end_header_id|>\\n\\n content <|eot_id|> )*

Contents are stripped at both ends, as Meta's first code and all templates do. From Llama 3.1 on there is always a system message
with two lines on dates, and tool results exist (role `ipython`, JSON-quoted, as the model's own template writes them).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from herd.text.formats.parts import Control, Part, ends, refuse_tools, to_ids
from herd.text.messages import Message, Role
from herd.text.tokenizer import Tokenizer

DATE = "26 Jul 2024"
"""Today, for a model that is told none: the date that the templates of Llama 3.1 to 3.3 fall back on."""

_BEGIN, _END = Control("<|begin_of_text|>"), Control("<|eot_id|>")
_HEADER, _HEADER_END = Control("<|start_header_id|>"), Control("<|end_header_id|>")


@final
@dataclass(frozen=True, slots=True)
class Llama3:
    """has_dates: Llama 3.1 and later, with the system lines on dates and with tool results."""

    has_dates: bool

    @property
    def name(self) -> str:
        return "llama3.1" if self.has_dates else "llama3"

    def render(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, date: str | None = None
    ) -> list[int]:
        """See `ChatFormat.render`. The date is `26 Jul 2024` if none is given; Llama 3 of April 2024 is told none at all."""
        return to_ids(self.parts(messages, add_generation_prompt=add_generation_prompt, date=date), tokenizer)

    def parts(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, date: str | None = None) -> Iterator[Part]:
        """The prompt, scaffolding and content apart."""
        yield _BEGIN
        if self.has_dates:
            has_system = messages[0].role is Role.SYSTEM
            system = messages[0].content.strip() if has_system else ""
            yield from _framed("system", f"Cutting Knowledge Date: December 2023\nToday Date: {date or DATE}\n\n{system}")
            messages = messages[1:] if has_system else messages
        else:
            refuse_tools(messages, self.name)
        for message in messages:
            if message.role is Role.TOOL:
                yield from _framed("ipython", json.dumps(message.content, ensure_ascii=False))
            else:
                yield from _framed(message.role.value, message.content.strip())
        if add_generation_prompt:
            yield from _header("assistant")

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """`<|eot_id|>`, `<|eom_id|>` (a tool is called) and `<|end_of_text|>`."""
        return ends(tokenizer, ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"))


def _header(role: str) -> Iterator[Part]:
    yield from (_HEADER, role, _HEADER_END, "\n\n")


def _framed(role: str, content: str) -> Iterator[Part]:
    yield from _header(role)
    yield content
    yield _END
