"""Llama 4: the frame of Llama 3 with shorter names.

    <|begin_of_text|> ( <|header_start|>role<|header_end|>\\n\\n content <|eot|> )*

As Meta's `ChatFormat` does it: contents are taken as they are and encoded on their own, no system message and no date is added,
and tool results (role `ipython`) end with `<|eom|>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from herd.text.formats.parts import Control, Part, ends, to_ids
from herd.text.messages import Message, Role
from herd.text.tokenizer import Tokenizer

_BEGIN, _TURN_END, _MESSAGE_END = Control("<|begin_of_text|>"), Control("<|eot|>"), Control("<|eom|>")
_HEADER, _HEADER_END = Control("<|header_start|>"), Control("<|header_end|>")


@final
@dataclass(frozen=True, slots=True)
class Llama4:
    """The format has nothing to choose."""

    @property
    def name(self) -> str:
        return "llama4"

    def render(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, date: str | None = None
    ) -> list[int]:
        """See `ChatFormat.render`. The format has no date, so `date` changes nothing."""
        ids: list[int] = []
        for piece in self._pieces(messages, add_generation_prompt):
            ids += to_ids(piece, tokenizer)
        return ids

    def parts(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, date: str | None = None) -> Iterator[Part]:
        """The prompt, scaffolding and content apart."""
        for piece in self._pieces(messages, add_generation_prompt):
            yield from piece

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """`<|eot|>`, `<|eom|>` (a tool is called) and `<|end_of_text|>`."""
        return ends(tokenizer, ("<|eot|>", "<|eom|>", "<|end_of_text|>"))

    def _pieces(self, messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[tuple[Part, ...]]:
        """The prompt in pieces that are encoded one by one."""
        yield (_BEGIN,)
        for message in messages:
            is_tool = message.role is Role.TOOL
            yield _header("ipython" if is_tool else message.role.value)
            yield (message.content, _MESSAGE_END if is_tool else _TURN_END)
        if add_generation_prompt:
            yield _header("assistant")


def _header(role: str) -> tuple[Part, ...]:
    return _HEADER, role, _HEADER_END, "\n\n"
