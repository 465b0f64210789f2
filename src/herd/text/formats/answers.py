"""Where the answers of a conversation stand among its ids: what training is to learn, and nothing else.

An answer begins where the prompt that asks for it ends, and ends with the first control token after it that ends a turn:

    conversation   <|start_header_id|>user ... <|eot_id|><|start_header_id|>assistant<|end_header_id|>\\n\\n four <|eot_id|>
    prompt         <|start_header_id|>user ... <|eot_id|><|start_header_id|>assistant<|end_header_id|>\\n\\n
    answer                                                                                                  four <|eot_id|>

So the definition is the format's own `pieces`, rendered up to each answer, and it holds for every format and template. Three things
can go differently, and are seen to:

  a token over the border   where the prompt's last text and the answer's first would become one token, they are cut there: a model
                            that is asked never sees that token
  a begun answer            some prompts begin the answer (`<think>`). An answer that has that beginning is learned from there on
  another past              some templates write earlier turns otherwise than the last one (they drop its reasoning, say). Then
                            each answer is a conversation of its own that ends with it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from herd.errors import UsageError
from herd.records import dataclass
from herd.text.formats.parts import ChatFormat, Control, Conversation, Grid, Part, Tiles, control_id, read_conversation
from herd.text.messages import Message, Role
from herd.text.tools import BuiltIn, Tool


@dataclass(frozen=True, slots=True)
class Answer:
    """ids[begin:end] is what the model writes as messages[message], with the control token that ends it."""

    message: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Answered:
    """Ids of a conversation, and the answers in it in order. pictures: the positions of the ids that stand for pictures, as ranges."""

    ids: tuple[int, ...]
    answers: tuple[Answer, ...]
    pictures: tuple[tuple[int, int], ...] = ()


class _Break:
    """Stands between pieces that are encoded one by one."""


_BREAK = _Break()
_Item = Part | _Break
_Border = tuple[int, int]
"""(which item, how many characters into it)"""


def answered(
    chat_format: ChatFormat,
    messages: Iterable[Message | Mapping[str, Any]],
    *,
    tools: Iterable[Tool | BuiltIn | str | Mapping[str, Any]] | None = (),
    date: str | None = None,
    tiles: Tiles | None = None,
) -> tuple[Answered, ...]:
    """A conversation's ids and answers: one, or one for each answer where the format writes the past otherwise than the present.

    Arguments as of `render`, whose ids these are without a generation prompt; messages after the last answer are left out.
    `UsageError` for what the format refuses, for an answer that nothing stands before, and for a format of which it cannot be said
    where an answer begins or ends.
    """
    conversation = read_conversation(messages, tools, add_generation_prompt=False, date=date)
    wanted = [at for at, message in enumerate(conversation.messages) if message.role is Role.ASSISTANT]
    if not wanted:
        raise UsageError("the conversation has no message of the assistant, so there is nothing to learn from it.")
    if wanted[0] == 0:
        raise UsageError("messages[0] is the assistant's; an answer is learned from what stands before it.")
    _check_pictures(chat_format, conversation)
    alone = [_upto(chat_format, conversation, at) for at in wanted]
    whole = alone[-1][0]
    if all(_stands(each, whole) for each in alone):
        upto = _cut(conversation, wanted[-1] + 1)
        return (_encoded(chat_format, upto, whole, [(at, *border) for at, (_, border) in zip(wanted, alone, strict=True)], tiles),)
    return tuple(
        _encoded(chat_format, _cut(conversation, at + 1), items, [(at, *border)], tiles)
        for at, (items, border) in zip(wanted, alone, strict=True)
    )


def _upto(chat_format: ChatFormat, conversation: Conversation, at: int) -> tuple[list[_Item], tuple[_Border, int]]:
    """The conversation up to the answer `at`, and where in it that begins and ends."""
    prompt = _items(chat_format, replace(_cut(conversation, at), add_generation_prompt=True))
    items = _items(chat_format, _cut(conversation, at + 1))
    begin = _border(prompt, items)
    if begin is None and (begun := _begun(chat_format, prompt, items, conversation.messages[at])) is not None:
        return begun
    if begin is None:
        raise UsageError(
            f"the chat format {chat_format.name} writes messages[{at}] otherwise than the prompt that asks for it, so it cannot be said"
            " what the model would have to write. Train with another chat format (--format)."
        )
    end = _end(chat_format, items, begin)
    if end is None:
        raise UsageError(
            f"the chat format {chat_format.name} ends messages[{at}] with no control token that stops an answer; a model that learns it"
            " would never stop. Train with another chat format (--format)."
        )
    return items, (begin, end)


def _begun(
    chat_format: ChatFormat, prompt: list[_Item], items: list[_Item], message: Message
) -> tuple[list[_Item], tuple[_Border, int]] | None:
    """For formats whose prompt begins the answer (`<think>`), which the conversation writes otherwise: the prompt, then what follows
    that beginning in an answer that has it, up to the end that the conversation gives it. None for other formats and answers."""
    last, there = prompt[-1], items[len(prompt) - 1] if len(prompt) <= len(items) else None
    if not (isinstance(last, str) and isinstance(there, str)) or prompt[:-1] != items[: len(prompt) - 1] or message.tool_calls:
        return None
    shared = next((at for at, (one, other) in enumerate(zip(last, there, strict=False)) if one != other), min(len(last), len(there)))
    beginning, text = last[shared:].strip(), message.text.lstrip()
    end = _end(chat_format, items, (len(prompt) - 1, 0))
    if not beginning or not text.startswith(beginning) or end is None:
        return None
    rest = text[len(beginning) :].lstrip("\n")
    made = [*prompt[:-1], last + rest, *items[len(prompt) : end]]
    return made, ((len(prompt) - 1, len(last)), len(made))


def _stands(alone: tuple[list[_Item], tuple[_Border, int]], whole: list[_Item]) -> bool:
    """Whether the whole conversation begins with that part of it, up to the end of the answer."""
    items, (_, end) = alone
    return items[:end] == whole[:end]


def _cut(conversation: Conversation, count: int) -> Conversation:
    """Its first messages."""
    return replace(conversation, messages=conversation.messages[:count])


def _check_pictures(chat_format: ChatFormat, conversation: Conversation) -> None:
    if conversation.images and not chat_format.image_token:
        raise UsageError(f"the conversation has a picture; the chat format {chat_format.name} has none, as the model reads text only.")


def _items(chat_format: ChatFormat, conversation: Conversation) -> list[_Item]:
    """The prompt as a flat list: neighbouring texts of a piece are one, none is empty, and a break begins each piece."""
    items: list[_Item] = []
    for piece in chat_format.pieces(conversation):
        items.append(_BREAK)
        for part in piece:
            if isinstance(part, Control):
                items.append(part)
            elif part:
                last = items[-1]
                items[-1:] = [last + part] if isinstance(last, str) else [last, part]
    return items


def _border(prompt: list[_Item], whole: list[_Item]) -> _Border | None:
    """Where `whole` goes on after `prompt`; None if it does not begin with it."""
    count = len(prompt)
    if not 0 < count <= len(whole) or prompt[:-1] != whole[: count - 1]:
        return None
    last, there = prompt[-1], whole[count - 1]
    if last == there:
        return count, 0
    if isinstance(last, str) and isinstance(there, str) and there.startswith(last):
        return count - 1, len(last)
    return None


def _end(chat_format: ChatFormat, whole: list[_Item], begin: _Border) -> int | None:
    """After which item the answer that begins there has ended. Contents cannot be control tokens, so the first that stops is it."""
    stops, known = chat_format.stop_ids, chat_format.tokenizer.special_ids
    for index in range(begin[0], len(whole)):
        item = whole[index]
        if isinstance(item, Control) and known.get(item.name) in stops:
            return index + 1
    return None


def _encoded(
    chat_format: ChatFormat,
    conversation: Conversation,
    whole: list[_Item],
    borders: Sequence[tuple[int, _Border, int]],
    tiles: Tiles | None,
) -> Answered:
    tokenizer = chat_format.tokenizer
    cuts = {begin for _, begin, _ in borders}
    offset_of: dict[int, int] = {begin[0]: begin[1] for begin in cuts if begin[1]}
    ids: list[int] = []
    starts: dict[_Border, int] = {}
    is_first, before = True, 0
    for index, item in enumerate(whole):
        starts[index, 0] = len(ids)
        if isinstance(item, _Break):
            is_first = True
            continue
        if isinstance(item, Control):
            before = control_id(item.name, tokenizer)
            ids.append(before)
        else:
            lead = () if is_first else (before,)
            made, inside = _text_ids(chat_format, lead, item, offset_of.get(index, 0))
            starts[index, offset_of.get(index, 0)] = len(ids) + inside
            ids += made
        is_first = False
    starts[len(whole), 0] = len(ids)
    answers = [Answer(message, starts[begin], starts[end, 0]) for message, begin, end in borders]
    return _with_pictures(chat_format, conversation, ids, answers, tiles)


def _text_ids(chat_format: ChatFormat, lead: tuple[int, ...], text: str, offset: int) -> tuple[list[int], int]:
    """(ids of a text that stands behind the control token `lead`, how many of them are of text[:offset])."""
    encode = chat_format.tokenizer.encode_parts
    ids = encode((*lead, text))[len(lead) :]
    if not offset:
        return ids, 0
    left = encode((*lead, text[:offset]))[len(lead) :]
    if ids[: len(left)] == left:
        return ids, len(left)
    return left + chat_format.tokenizer.encode_inside(text[offset:]), len(left)


def _with_pictures(
    chat_format: ChatFormat, conversation: Conversation, ids: list[int], answers: list[Answer], tiles: Tiles | None
) -> Answered:
    """The same with each picture's id in place of its control token, and with all of its ids where they are known."""
    images = conversation.images
    if not images:
        return Answered(tuple(ids), tuple(answers))
    written, read = control_id(chat_format.image_token, chat_format.tokenizer), chat_format.image_id
    ids = [read if token == written else token for token in ids]
    places = [index for index, token in enumerate(ids) if token == read]
    if len(places) != len(images):
        raise UsageError(
            f"the conversation has {len(images)} pictures; the chat format {chat_format.name} placed {len(places)} in the prompt."
        )
    cut = tiles or chat_format.tiles
    if cut is None:
        return Answered(tuple(ids), tuple(answers), tuple((place, place + 1) for place in places))
    return _expanded(chat_format, ids, places, answers, [cut(image) for image in images])


def _expanded(chat_format: ChatFormat, ids: list[int], places: list[int], answers: list[Answer], grids: list[Grid]) -> Answered:
    ranges: list[tuple[int, int]] = []
    longer = 0
    for count, place in enumerate(places, 1):
        end = len(chat_format.expanded(ids[: place + 1], grids[:count]))
        ranges.append((place + longer, end))
        longer = end - place - 1

    def moved(at: int) -> int:
        return max([at] + [end - place - 1 + at for place, (_, end) in zip(places, ranges, strict=True) if place < at])

    placed = (Answer(answer.message, moved(answer.begin), moved(answer.end)) for answer in answers)
    return Answered(tuple(chat_format.expanded(ids, grids)), tuple(placed), tuple(ranges))
