"""ChatML: `<|im_start|>role\\ncontent<|im_end|>\\n`, as SmolLM2 and many fine-tunes of Llama read conversations.

Contents are not trimmed. Some models' templates put a system message of their own before conversations that have none; it is
taken from the template (`choose_format`), not from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from herd.text.formats.parts import Control, Part, ends, refuse_tools, to_ids
from herd.text.messages import Message, Role
from herd.text.tokenizer import Tokenizer

_START, _END = Control("<|im_start|>"), Control("<|im_end|>")


@final
@dataclass(frozen=True, slots=True)
class ChatML:
    """default_system: the system message of conversations without one. bos: a control token before everything, if any."""

    default_system: str | None = None
    bos: str | None = None

    @property
    def name(self) -> str:
        return "chatml"

    def render(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, date: str | None = None
    ) -> list[int]:
        """See `ChatFormat.render`. The format has no date, so `date` changes nothing."""
        return to_ids(self.parts(messages, add_generation_prompt=add_generation_prompt), tokenizer)

    def parts(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, date: str | None = None) -> Iterator[Part]:
        """The prompt, scaffolding and content apart."""
        refuse_tools(messages, self.name)
        if self.bos is not None:
            yield Control(self.bos)
        if self.default_system is not None and messages[0].role is not Role.SYSTEM:
            yield from _turn("system", self.default_system)
        for message in messages:
            yield from _turn(message.role.value, message.content)
        if add_generation_prompt:
            yield _START
            yield "assistant\n"

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """`<|im_end|>` and what the tokenizer says."""
        return ends(tokenizer, (_END.name,))


def _turn(role: str, content: str) -> Iterator[Part]:
    yield _START
    yield f"{role}\n{content}"
    yield _END
    yield "\n"
