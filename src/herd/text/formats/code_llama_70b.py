"""Code Llama 70B Instruct: turns named in text, each ended by the control token `<step>`.

    <s> Source: system\\n\\n {system} <step> Source: user\\n\\n {user} <step> Source: assistant\\nDestination: user\\n\\n

As Meta's code does it, every piece (the name of the source, the content) is encoded on its own, with the leading space that is
written above. The names are text, but a message cannot fake a turn: turns begin after `<step>`, which no text can become.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from herd.errors import FileProblem, UsageError
from herd.records import dataclass
from herd.text.formats.parts import ChatFormat, Control, Conversation, Part, refuse_tools
from herd.text.messages import Role

_STEP = Control("<step>")


@final
@dataclass(frozen=True)
class CodeLlama70B(ChatFormat):
    """The format has nothing to choose."""

    ends = (_STEP.name, "</s>")

    @property
    def name(self) -> str:
        return "code-llama-70b"

    def parts(self, conversation: Conversation) -> Iterator[Part]:
        """The prompt for people; each text in it is encoded on its own (`pieces`). The format has no date."""
        refuse_tools(conversation, self.name)
        _check_order(conversation)
        for message in conversation.messages:
            yield f" Source: {message.role.value}"
            if message.text.strip():
                yield f"\n\n {message.text.strip()}"
            yield _STEP
        if conversation.add_generation_prompt:
            yield from (" Source: assistant\nDestination: user", "\n\n ")

    def pieces(self, conversation: Conversation) -> Iterator[tuple[Part, ...]]:
        if self.tokenizer.bos_id is None:
            raise FileProblem("the chat format code-llama-70b needs a BOS token, which this model's vocabulary does not name.")
        yield (Control(self.tokenizer.special_text(self.tokenizer.bos_id)),)
        for part in self.parts(conversation):
            yield (part,)


def _check_order(conversation: Conversation) -> None:
    messages = conversation.messages
    begin = 1 if messages[0].role is Role.SYSTEM else 0
    for index, message in enumerate(messages[begin:]):
        expected = Role.ASSISTANT if index % 2 else Role.USER
        if message.role is not expected:
            raise UsageError(
                f"messages[{index + begin}].role is {message.role.value}; the chat format code-llama-70b takes a system message first"
                f" and then user and assistant in turn, so {expected.value} is expected here."
            )
