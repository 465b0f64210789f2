"""What a chat format writes: scaffolding and content, kept apart until they are ids.

A prompt is a list of parts: `Control` tokens by name, and texts. Texts are encoded as plain text whatever they say, so a message
that contains `<|im_end|>` gives the ids of those characters, never the control token. A picture is one control token.
"""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar

from herd.errors import FileProblem, UsageError
from herd.records import dataclass
from herd.text.formats import languages
from herd.text.formats.begun import Head
from herd.text.formats.parsing import Marks, StreamParser
from herd.text.messages import Image, Message, Role, Text, read_messages
from herd.text.tokenizer import Tokenizer
from herd.text.tools import BuiltIn, Tool, ToolCall, read_tools


@dataclass(frozen=True, slots=True)
class Control:
    """A control token by its text, such as `<|eot_id|>`."""

    name: str


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
EXTRA_IMAGE_ID = (128_011, 128_256)
"""Meta's vocabulary of Llama 3 has `<|image|>` inside; the models read it as the row after the vocabulary, as Meta's code does."""

Part = str | Control
Grid = tuple[int, int] | tuple[int, int, int]
"""Rows and columns of tiles (for Muse-Glimmer: of patches) that a picture becomes; and how many ids a tile is, where that is not
the release's number."""
Tiles = Callable[[Image], Grid]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Everything that a prompt is made of, read and checked. `date` None: the format's own fixed date."""

    messages: Sequence[Message]
    tools: tuple[Tool, ...] = ()
    built_ins: tuple[BuiltIn, ...] = ()
    add_generation_prompt: bool = True
    date: str | None = None

    @property
    def images(self) -> list[Image]:
        """The pictures of all messages, in order."""
        return [image for message in self.messages for image in message.images]

    @property
    def has_tools(self) -> bool:
        return bool(self.tools or self.built_ins)


@dataclass(frozen=True)
class ChatFormat(ABC):
    """How one family of models was taught to read conversations and to write answers, with the vocabulary of one model.

    A format says what it writes in `parts`; rendering, parsing and pictures follow from that and from the class's few facts.
    """

    tokenizer: Tokenizer
    tiles: Tiles | None = field(default=None, kw_only=True, compare=False, repr=False)
    """Gives the grid of each picture, where a model is known that cuts pictures so; used when `render` is given none."""

    image_token = ""
    """The control token that stands for a picture; empty in formats without pictures."""
    marks = Marks()
    """The control tokens of an answer that begin and end a call."""
    ends: ClassVar[tuple[str, ...]] = ()
    """Control tokens that end an answer, besides those that the tokenizer names."""
    unfinished: ClassVar[tuple[str, ...]] = ("<|eom_id|>", "<|eom|>")
    """Those of them after which the model expects to go on."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As `herd show` prints it."""

    @abstractmethod
    def parts(self, conversation: Conversation) -> Iterable[Part]:
        """The prompt, scaffolding and content apart. `UsageError` for what the format does not know."""

    def header(self) -> Sequence[Part]:
        """What stands before every answer; an answer that begins with it is read without it."""
        return ()

    def render(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        tools: Iterable[Tool | BuiltIn | str | Mapping[str, Any]] | None = (),
        add_generation_prompt: bool = True,
        date: str | None = None,
        tiles: Tiles | None = None,
    ) -> list[int]:
        """Ids of the whole conversation, with BOS where the format has one.

        tools: what the model may call. add_generation_prompt: end with the header of the answer. date: today as the format
        writes it, such as `26 Jul 2024`, for formats that tell the model; None: the format's own fixed date. Rendering never
        reads a clock. tiles: gives the rows and columns of each picture; then a picture becomes all of its ids, in formats
        where it has several (a model's own `chat_format` knows them); else each picture is one id. `UsageError` for roles, an order,
        tools or pictures that the format does not know.
        """
        conversation = read_conversation(messages, tools, add_generation_prompt=add_generation_prompt, date=date)
        images = conversation.images
        if images and not self.image_token:
            raise UsageError(f"the conversation has a picture; the chat format {self.name} has none, as the model reads text only.")
        ids = self.token_ids(conversation)
        if not images:
            return ids
        written, read = control_id(self.image_token, self.tokenizer), self.image_id
        ids = [read if token == written else token for token in ids]
        if ids.count(read) != len(images):
            raise UsageError(
                f"the conversation has {len(images)} pictures; the chat format {self.name} placed {ids.count(read)} in the prompt."
            )
        cut = tiles or self.tiles
        return ids if cut is None else self.expanded(ids, [cut(image) for image in images])

    def pieces(self, conversation: Conversation) -> Iterable[Iterable[Part]]:
        """The prompt in pieces that are encoded one by one: in most formats a single one."""
        return (self.parts(conversation),)

    def token_ids(self, conversation: Conversation) -> list[int]:
        """Ids of a conversation that was read already."""
        return [token for piece in self.pieces(conversation) for token in to_ids(piece, self.tokenizer)]

    def expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """`ids` with all ids of each picture in place of its one; the same in formats where a picture is one id."""
        return list(ids)

    def images(self, messages: Iterable[Message | Mapping[str, Any]]) -> list[Image]:
        """The pictures of a conversation, in the order in which their ids stand in the prompt."""
        return [image for message in read_messages(messages) for image in message.images]

    @property
    def image_id(self) -> int:
        """The id that stands for a picture. `FileProblem` if the vocabulary has none."""
        found = control_id(self.image_token, self.tokenizer)
        return EXTRA_IMAGE_ID[1] if (found, self.tokenizer.vocab_size) == EXTRA_IMAGE_ID else found

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: the tokenizer's own stops and the format's that it has."""
        known = self.tokenizer.special_ids
        return self.tokenizer.stop_ids | {known[name] for name in self.ends if name in known}

    @property
    def mark_ids(self) -> frozenset[int]:
        """Control tokens that the parser has to see."""
        known = self.tokenizer.special_ids
        return frozenset(known[name] for name in self.marks.names if name in known)

    def call_grammar(self, tools: Sequence[Tool | BuiltIn], *, parallel: bool = True) -> str:
        """The language of an answer that is calls of these tools and nothing else, one at least, as this format writes them: a grammar in
        llguidance's variant of Lark. parallel: several calls, where the format has several in one answer. `UsageError` if it has none."""
        raise UsageError(f"a call of a tool is demanded; the chat format {self.name} defines none.")

    def call_heads(self, tools: Sequence[Tool | BuiltIn]) -> Mapping[str, Head]:
        """The texts with which the answers of `call_grammar` begin, up to the arguments: from there on an answer is surely a call."""
        return {}

    def mark(self, name: str) -> str:
        """A control token as `call_grammar` writes it; as text, if the vocabulary does not have it."""
        found = self.tokenizer.special_ids.get(name)
        return languages.literal(name) if found is None else languages.token(found)

    def parser(self, tools: Iterable[Tool | BuiltIn] | None = None, *, heads: Mapping[str, Head] | None = None) -> StreamParser:
        """Reads an answer as it arrives. tools: what was offered; None: any well-formed call counts. heads: `call_heads`, for an answer
        that is held to `call_grammar` once it begins with one of them."""
        names = None if tools is None else frozenset(tool.name if isinstance(tool, Tool) else tool.value for tool in tools)
        return StreamParser(self.marks, names, self.tokenizer.stream(keep=self.mark_ids), heads)

    def parse(self, ids: Iterable[int]) -> Message:
        """The assistant's message that an answer is: its text, and the calls in it. Never fails for ids of the model.

        A header before it and the control token that ends it are no part of it; what comes after that token is read on.
        """
        answer = list(ids)
        header = to_ids(self.header(), self.tokenizer)
        if header and answer[: len(header)] == header:
            answer = answer[len(header) :]
        stops = self.stop_ids
        kept = [token for token in answer if token not in stops]
        ended = next((token for token in reversed(answer) if token in stops), None)
        parser = self.parser()
        pieces = [*parser.push(kept), *parser.finish()]
        calls = tuple(call for piece in pieces for call in piece.calls)
        text = "".join(piece.text for piece in pieces)
        ends_turn = None if ended is None else self.tokenizer.special_text(ended) not in self.unfinished
        return Message(Role.ASSISTANT, "" if calls and not text.strip() else text, calls, ends_turn=ends_turn)

    def content(self, message: Message, *, strip: bool) -> list[Part]:
        """A message's texts and pictures as parts. strip: without white space at both ends of each text."""
        written: list[Part] = []
        for part in message.parts:
            if isinstance(part, Text):
                written.append(part.text.strip() if strip else part.text)
            elif self.image_token:
                written.append(Control(self.image_token))
        return written


def today() -> str:
    """Today as Meta's templates write dates, in English whatever the locale: `26 Jul 2024`."""
    day = datetime.date.today()
    return f"{day.day:02d} {_MONTHS[day.month - 1]} {day.year}"


def read_conversation(
    messages: Iterable[Message | Mapping[str, Any]],
    tools: Iterable[Tool | BuiltIn | str | Mapping[str, Any]] | None = (),
    *,
    add_generation_prompt: bool = True,
    date: str | None = None,
) -> Conversation:
    """Messages and tools, read and checked. The date "today" becomes today's. `UsageError` names what is wrong."""
    offered = read_tools(tools)
    date = today() if date == "today" else date
    given: object = date
    if given is not None and (not isinstance(given, str) or len(given) > 100):
        raise UsageError(f"date is {given!r:.120}; expected a short text such as '26 Jul 2024'.")
    return Conversation(
        messages=read_messages(messages),
        tools=tuple(tool for tool in offered if isinstance(tool, Tool)),
        built_ins=tuple(tool for tool in offered if isinstance(tool, BuiltIn)),
        add_generation_prompt=add_generation_prompt,
        date=date,
    )


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


def only_call(index: int, message: Message, format_name: str) -> ToolCall:
    """The one call of a message, for formats in which a message has one."""
    if len(message.tool_calls) != 1:
        raise UsageError(f"messages[{index}] calls {len(message.tool_calls)} tools; the chat format {format_name} has one call a message.")
    return message.tool_calls[0]


def refuse_tools(conversation: Conversation, format_name: str) -> None:
    """For formats that define no tools."""
    if conversation.has_tools:
        raise UsageError(f"tools are offered; the chat format {format_name} defines none.", param="tools")
    for index, message in enumerate(conversation.messages):
        if message.role is Role.TOOL:
            raise UsageError(f"messages[{index}] is a tool result; the chat format {format_name} defines none.")
        if message.tool_calls:
            raise UsageError(f"messages[{index}] calls a tool; the chat format {format_name} defines none.")
