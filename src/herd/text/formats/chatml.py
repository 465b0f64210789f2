"""ChatML: `<|im_start|>role\\ncontent<|im_end|>\\n`, as SmolLM2 and many fine-tunes of Llama read conversations.

Contents are not trimmed. Some models' templates put a system message of their own before conversations that have none; it is
taken from the template (`choose_format`), not from here. How tools are offered differs from model to model: their templates say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from herd.records import dataclass
from herd.text.formats.parts import ChatFormat, Control, Conversation, Part, refuse_tools
from herd.text.messages import Role

_START, _END = Control("<|im_start|>"), Control("<|im_end|>")


@final
@dataclass(frozen=True)
class ChatML(ChatFormat):
    """default_system: the system message of conversations without one. bos: a control token before everything, if any."""

    default_system: str | None = None
    bos: str | None = None

    ends = (_END.name,)

    @property
    def name(self) -> str:
        return "chatml"

    def header(self) -> Sequence[Part]:
        return _START, "assistant\n"

    def parts(self, conversation: Conversation) -> Iterator[Part]:
        """The format has no date, so one changes nothing."""
        refuse_tools(conversation, self.name)
        if self.bos is not None:
            yield Control(self.bos)
        messages = conversation.messages
        if self.default_system is not None and messages[0].role is not Role.SYSTEM:
            yield from _turn("system", self.default_system)
        for message in messages:
            yield from _turn(message.role.value, message.text)
        if conversation.add_generation_prompt:
            yield from self.header()


def _turn(role: str, content: str) -> Iterator[Part]:
    yield _START
    yield f"{role}\n{content}"
    yield _END
    yield "\n"
