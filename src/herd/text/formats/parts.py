"""What a chat format writes: scaffolding and content, kept apart until they are ids.

A prompt is a list of parts: `Control` tokens by name, and texts. Texts are encoded as plain text whatever they say, so a message
that contains `<|im_end|>` gives the ids of those characters, never the control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from herd.errors import FileProblem, UsageError
from herd.text.messages import Message, Role
from herd.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Control:
    """A control token by its text, such as `<|eot_id|>`."""

    name: str


Part = str | Control


class ChatFormat(Protocol):
    """How one family of models was taught to read conversations."""

    @property
    def name(self) -> str:
        """As `herd show` prints it."""

    def render(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, date: str | None = None
    ) -> list[int]:
        """Ids of the whole conversation, with BOS where the format has one.

        add_generation_prompt: end with the header of the answer. date: today as the format writes it, such as `26 Jul 2024`,
        for formats that tell the model; None: the format's own fixed date. Rendering never reads a clock.
        `UsageError` for roles or an order that the format does not know.
        """

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids that end an answer."""


def to_ids(parts: Iterable[Part], tokenizer: Tokenizer) -> list[int]:
    """Ids of a rendered prompt. `FileProblem` if the vocabulary lacks one of the format's control tokens."""
    return tokenizer.encode_parts(part if isinstance(part, str) else control_id(part.name, tokenizer) for part in parts)


def to_text(parts: Iterable[Part]) -> str:
    """The prompt as one text, for people and for comparing with templates; not for encoding."""
    return "".join(part if isinstance(part, str) else part.name for part in parts)


def control_id(name: str, tokenizer: Tokenizer) -> int:
    """The id of a control token that a format needs."""
    found = tokenizer.special_ids.get(name)
    if found is None:
        raise FileProblem(f"the chat format needs the control token {name}, which this model's vocabulary does not have.")
    return found


def ends(tokenizer: Tokenizer, names: Iterable[str]) -> frozenset[int]:
    """The tokenizer's own stops and the named control tokens that it has."""
    return tokenizer.stop_ids | {tokenizer.special_ids[name] for name in names if name in tokenizer.special_ids}


def refuse_tools(messages: Sequence[Message], format_name: str) -> None:
    """For formats that define no tool results."""
    for index, message in enumerate(messages):
        if message.role is Role.TOOL:
            raise UsageError(f"messages[{index}] is a tool result; the chat format {format_name} defines none.")
