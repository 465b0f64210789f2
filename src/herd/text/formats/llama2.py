"""Llama 2-Chat (also Code Llama 7B to 34B Instruct): `[INST] user [/INST] answer`, one encoding per pair of turns.

    <s> [INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{user} [/INST] {answer} </s> <s> [INST] {user} [/INST]

The tags are plain text, not tokens, so a message that contains one could end its own turn: such messages are refused, as Meta's
code does. The system message becomes part of the first user message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from herd.errors import FileProblem, UsageError
from herd.records import dataclass
from herd.text.formats.parts import ChatFormat, Control, Conversation, Part, refuse_tools
from herd.text.messages import Message, Role

_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


@final
@dataclass(frozen=True)
class Llama2(ChatFormat):
    """The format has nothing to choose."""

    ends = ("</s>",)

    @property
    def name(self) -> str:
        return "llama2"

    def parts(self, conversation: Conversation) -> Iterator[Part]:
        """The texts of the turns, for people; each is encoded on its own (`pieces`)."""
        for user, answer in self._turns(conversation):
            yield _turn(user, answer)

    def pieces(self, conversation: Conversation) -> Iterator[tuple[Part, ...]]:
        """The prompt for an answer is the end of the user's turn, so `add_generation_prompt` only asks that the user speaks last;
        the format has no date."""
        tokenizer = self.tokenizer
        if tokenizer.bos_id is None or not tokenizer.eos_ids:
            raise FileProblem("the chat format llama2 needs BOS and EOS tokens, which this model's vocabulary does not name.")
        begin, end = (Control(tokenizer.special_text(token)) for token in (tokenizer.bos_id, tokenizer.eos_ids[0]))
        for user, answer in self._turns(conversation):
            yield (begin,)
            yield (_turn(user, answer),)
            if answer is not None:
                yield (end,)

    def _turns(self, conversation: Conversation) -> list[tuple[str, str | None]]:
        turns = pairs(conversation.messages)
        refuse_tools(conversation, self.name)
        if conversation.add_generation_prompt and turns[-1][1] is not None:
            raise UsageError("the last message is the assistant's; the chat format llama2 answers a user's message.")
        return turns


def pairs(messages: Sequence[Message]) -> list[tuple[str, str | None]]:
    """(user, answer) turns with the system message folded into the first; the last answer may be missing.

    `UsageError` for another order of roles, and for messages that contain the format's tags.
    """
    refuse_tags(messages, "llama2")
    system = messages[0].text if messages and messages[0].role is Role.SYSTEM else None
    rest = list(messages[1:] if system is not None else messages)
    for index, message in enumerate(rest):
        expected = Role.ASSISTANT if index % 2 else Role.USER
        if message.role is not expected:
            at = index + (system is not None)
            raise UsageError(
                f"messages[{at}].role is {message.role.value}; the chat format llama2 takes one system message at most, first, and then"
                f" user and assistant in turn, so {expected.value} is expected here."
            )
    if not rest:
        raise UsageError("the conversation has no user message; the chat format llama2 needs one.")
    users = [message.text for message in rest[::2]]
    if system is not None:
        users[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{users[0]}"
    answers = [*(message.text for message in rest[1::2]), None]
    return list(zip(users, answers, strict=False))


def refuse_tags(messages: Sequence[Message], format_name: str) -> None:
    """`UsageError` for messages that contain a tag of the format, which is text there and would start or end a turn."""
    for index, message in enumerate(messages):
        tag = next((tag for tag in _TAGS if tag in message.text), None)
        if tag is not None:
            raise UsageError(f"messages[{index}] contains {tag}, which would start or end a turn in the chat format {format_name}.")


def _turn(user: str, answer: str | None) -> str:
    question = f"[INST] {user.strip()} [/INST]"
    return question if answer is None else f"{question} {answer.strip()} "
