"""Conversations out of a record's fields: who speaks when, what is offered and shown, and what makes a record unusable."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.data.account import Account
from herd.data.reading import Place
from herd.data.samples import Chat, PictureFile, Tools
from herd.errors import UsageError
from herd.records import dataclass
from herd.text.messages import Image, Message, Role, Text, read_messages
from herd.text.tools import read_tools

UNREADABLE = "a field is not what its shape has there"
ROLES = "roles are out of order"
NO_ANSWER = "there is no answer to learn"
EMPTY_ANSWER = "an answer is empty"
EMPTY_QUESTION = "a question is empty"
EMPTY = "the text is empty"
SAME = "the chosen and the rejected answer are the same"
NO_WEIGHT = "every answer has the weight 0"
NO_PROMPT = "the two answers have no prompt in common"
PICTURE = "a picture cannot be had"
UNANSWERED = "messages after the last answer are left out"

_SPEAKERS = {
    **{name: "user" for name in ("human", "user", "prompter")},
    **{name: "assistant" for name in ("gpt", "assistant", "chatgpt", "bing", "bard", "model")},
    **{name: "tool" for name in ("tool", "observation", "function_response", "function", "ipython")},
    "system": "system",
    "function_call": "call",
    "tool_call": "call",
}
_WEIGHTS = ("weight", "train")
"""What a message's weight is called by OpenAI (a number) and by others (true or false)."""


class Dropped(Exception):
    """This record is not used. reason: one of the few above, by which drops are counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Source:
    """The record that is being read."""

    place: Place
    account: Account

    def text(self, value: Mapping[str, Any], key: str, *, optional: bool = False) -> str:
        """A field that is a text; optional: missing or null is an empty one."""
        found = value.get(key)
        if isinstance(found, str):
            return found
        if found is None and optional:
            return ""
        raise Dropped(UNREADABLE, f"{key} is {type(found).__name__}; expected a text")

    def number(self, value: Mapping[str, Any], key: str) -> float | None:
        """A field that is a finite number; None where it is missing or null."""
        found = value.get(key)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise Dropped(UNREADABLE, f"{key} is {found!r:.40}; expected a number")
        return float(found)

    def note_unused(self, value: Mapping[str, Any], known: set[str]) -> None:
        for key in value.keys() - known:
            self.account.note(f"the key {key[:60]!r} is not used", self.place)

    def with_system(self, value: Mapping[str, Any], turns: Any) -> list[Any]:
        """The turns, behind the record's system message if it has one beside them."""
        if not isinstance(turns, list | tuple):
            raise Dropped(UNREADABLE, f"the messages are {type(turns).__name__}; expected a list")
        system = self.text(value, "system", optional=True)
        if not system.strip():
            return list(turns)
        if turns and isinstance(turns[0], Mapping) and turns[0].get("role") == "system":
            raise Dropped(ROLES, "a system message stands in the messages and another beside them")
        return [{"role": "system", "content": system}, *turns]


def read_turns(given: Sequence[Any], source: Source) -> tuple[list[Message], list[float]]:
    """Messages in OpenAI's shape, and the weight of each."""
    weights = [_weight(turn) for turn in given]
    turns = [_plain(turn, source) if isinstance(turn, Mapping) else turn for turn in given]
    try:
        messages = read_messages(turns)
    except UsageError as problem:
        raise Dropped(UNREADABLE, str(problem)) from None
    return messages, [weight if message.role is Role.ASSISTANT else 0.0 for message, weight in zip(messages, weights, strict=True)]


def checked_chat(source: Source, messages: Sequence[Message], tools: Tools, weights: Sequence[float], *, is_plain: bool = False) -> Chat:
    """The conversation up to its last answer, if it can be learned."""
    last = max((at for at, message in enumerate(messages) if message.role is Role.ASSISTANT), default=None)
    if last is None:
        raise Dropped(NO_ANSWER)
    _check_order(messages)
    if last + 1 < len(messages):
        source.account.note(UNANSWERED, source.place)
    messages, weights = messages[: last + 1], weights[: last + 1]
    for at, message in enumerate(messages):
        if message.role is Role.ASSISTANT and weights[at] and not message.text.strip() and not message.tool_calls:
            raise Dropped(EMPTY_ANSWER, f"messages[{at}]")
        if message.role is Role.USER and not message.text.strip() and not message.images:
            raise Dropped(EMPTY_QUESTION, f"messages[{at}]")
    if not any(weights):
        raise Dropped(NO_WEIGHT)
    uniform = all(weight == 1 for message, weight in zip(messages, weights, strict=True) if message.role is Role.ASSISTANT)
    return Chat(source.place, tuple(messages), tools, None if uniform else tuple(weights), is_plain)


def checked_prompt(messages: Sequence[Message], source: Source) -> tuple[Message, ...]:
    """A conversation that asks for an answer; a trailing answer that was given along is left out."""
    end = len(messages)
    while end and messages[end - 1].role is Role.ASSISTANT:
        end -= 1
        source.account.note("the answer at the end of a prompt is left out", source.place)
    if not end or messages[end - 1].role is Role.SYSTEM:
        raise Dropped(ROLES, "the prompt ends with no question")
    _check_order(messages[:end])
    return tuple(messages[:end])


def _check_order(messages: Sequence[Message]) -> None:
    """System first if at all, then user and assistant in turn; results of tools after the calls."""
    before: Message | None = None
    for at, message in enumerate(messages):
        allowed = _following(before)
        if message.role not in allowed:
            expected = " or ".join(role.value for role in allowed)
            raise Dropped(ROLES, f"messages[{at}] is of the role {message.role.value}; expected {expected}")
        before = message


def _following(before: Message | None) -> tuple[Role, ...]:
    if before is None:
        return Role.SYSTEM, Role.USER
    match before.role:
        case Role.SYSTEM:
            return (Role.USER,)
        case Role.USER:
            return (Role.ASSISTANT,)
        case Role.TOOL:
            return Role.TOOL, Role.ASSISTANT
        case Role.ASSISTANT:
            return (Role.TOOL,) if before.tool_calls else (Role.USER,)


def last_question(messages: Sequence[Message]) -> int:
    """Where the last message of the user stands."""
    return max(at for at, message in enumerate(messages) if message.role is Role.USER)


def read_offered(value: Mapping[str, Any], source: Source) -> Tools:
    """The tools that a record offers: a list, or one as JSON in a text."""
    given = value.get("tools")
    if given is None and value.get("functions") is not None:
        given = value["functions"]
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except (ValueError, RecursionError):
            raise Dropped(UNREADABLE, "tools is a text that is not JSON") from None
    try:
        return read_tools(given)
    except UsageError as problem:
        raise Dropped(UNREADABLE, str(problem)) from None


# ShareGPT and Alpaca


def from_sharegpt(turns: Any, pictures: list[Any], source: Source) -> list[Any]:
    """ShareGPT's turns in OpenAI's shape. pictures: what `<image>` in a question stands for, in order."""
    made: list[Any] = []
    for at, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
            raise Dropped(UNREADABLE, f"conversations[{at}] is {turn!r:.80}; expected an object with from and value")
        speaker = _SPEAKERS.get(turn["from"].lower())
        if speaker is None:
            raise Dropped(UNREADABLE, f"conversations[{at}].from is {turn['from']!r:.60}; known are {', '.join(_SPEAKERS)}")
        for key in turn.keys() - {"from", "value", *_WEIGHTS}:
            source.account.note(f"the key {key[:60]!r} of a turn is not used", source.place)
        weight = {key: turn[key] for key in _WEIGHTS if key in turn}
        if speaker == "call":
            made.append({"role": "assistant", "tool_calls": _calls(turn["value"], at), **weight})
        else:
            content = with_pictures(turn["value"], pictures, source) if speaker == "user" and "<image>" in turn["value"] else turn["value"]
            made.append({"role": speaker, "content": content, **weight})
    if pictures:
        raise Dropped(PICTURE, f"{len(pictures)} of the record's pictures stand at no <image>")
    return made


def _calls(text: str, at: int) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise Dropped(UNREADABLE, f"conversations[{at}] is a call that is not JSON: {text!r:.60}") from None
    return [{"function": call} for call in (found if isinstance(found, list) else [found])]


def pictures_given(value: Mapping[str, Any]) -> list[Any]:
    """What stands in `image` or `images` beside the texts."""
    given = value.get("images", value.get("image"))
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def with_pictures(text: str, pictures: list[Any], source: Source) -> Any:
    """The text with a picture in place of each `<image>`, taken from the front of `pictures`; those that no text places stand first."""
    if not pictures and "<image>" not in text:
        return text
    texts = text.split("<image>")
    if len(texts) == 1:
        found = [_picture(picture, source) for picture in pictures]
        pictures.clear()
        return [*found, {"type": "text", "text": text}]
    if len(texts) - 1 > len(pictures):
        raise Dropped(PICTURE, f"a text has {len(texts) - 1} times <image>, and the record {len(pictures)} pictures left")
    parts: list[Any] = [{"type": "text", "text": texts[0]}] if texts[0] else []
    for following in texts[1:]:
        parts.append(_picture(pictures.pop(0), source))
        if following:
            parts.append({"type": "text", "text": following})
    return parts


def history(value: Mapping[str, Any], source: Source) -> Iterable[tuple[str, str]]:
    """Alpaca's earlier turns: a list of questions with their answers."""
    given = value.get("history") or ()
    if not isinstance(given, list | tuple):
        raise Dropped(UNREADABLE, f"history is {type(given).__name__}; expected a list")
    for at, pair in enumerate(given):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Dropped(UNREADABLE, f"history[{at}] is {pair!r:.80}; expected a question and its answer")
        yield pair[0], pair[1]


# Prompts and answers


def as_messages(value: Any, role: str, source: Source) -> tuple[list[Any], bool]:
    """(messages in OpenAI's shape, whether it was a plain text) of a field that is a text, a message or a list of messages."""
    if isinstance(value, str):
        return [{"role": role, "content": value}], True
    if not isinstance(value, Mapping | list | tuple):
        raise Dropped(UNREADABLE, f"{value!r:.60} is {type(value).__name__}; expected a text or messages")
    turns = [value] if isinstance(value, Mapping) else list(value)
    is_sharegpt = bool(turns) and isinstance(turns[0], Mapping) and "from" in turns[0]
    return from_sharegpt(turns, [], source) if is_sharegpt else turns, False


PROMPTS = ("prompt", "conversations", "messages")
"""Under which keys what comes before two answers may stand."""


def side(value: Mapping[str, Any], key: str, source: Source) -> list[Message]:
    """The conversation with the answer `key`. An answer that is a whole conversation already needs no prompt."""
    answer, is_text = as_messages(value[key], "assistant", source)
    is_whole = not is_text and bool(answer) and isinstance(answer[0], Mapping) and answer[0].get("role") != "assistant"
    asked = next((value[name] for name in PROMPTS if value.get(name) is not None), None)
    if is_whole:
        given: list[Any] = []
        if asked is not None:
            source.account.note("the prompt beside whole conversations is not used", source.place)
    elif asked is None:
        raise Dropped(NO_PROMPT, f"{key} is only an answer, and the record has no prompt")
    else:
        given, _ = as_messages(asked, "user", source)
    messages, weights = read_turns(source.with_system(value, [*given, *answer]), source)
    return list(checked_chat(source, messages, (), weights).messages)


def common_prompt(sides: Sequence[list[Message]], source: Source) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """(what all the conversations begin with up to a question, the rest of each)."""
    first, *others = sides
    size = 0
    while all(size < len(side) - 1 and _is_same(side[size], first[size]) for side in (first, *others)):
        size += 1
    while size and first[size - 1].role not in (Role.USER, Role.TOOL):
        size -= 1
    if not size:
        raise Dropped(NO_PROMPT, "they begin differently")
    return tuple(first[:size]), [tuple(side[size:]) for side in sides]


def _is_same(one: Message, other: Message) -> bool:
    return _spelled(one) == _spelled(other)


def _spelled(message: Message) -> tuple[Any, ...]:
    """What makes two messages the same: pictures count by what they were given as."""
    parts = tuple(part.text if isinstance(part, Text) else ("picture", part.source) for part in message.parts)
    return message.role, parts, message.tool_calls, message.tool_call_id, message.name


# One message


def _weight(turn: Any) -> float:
    found = next((turn[key] for key in _WEIGHTS if turn.get(key) is not None), 1.0) if isinstance(turn, Mapping) else 1.0
    if not isinstance(found, int | float) or not math.isfinite(found) or found < 0:
        raise Dropped(UNREADABLE, f"the weight of a message is {found!r:.60}; expected a number that is not negative")
    return float(found)


def _plain(turn: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """The message without its weight, and with pictures for the names of their files."""
    made = {key: item for key, item in turn.items() if key not in _WEIGHTS}
    if isinstance(made.get("content"), list):
        made["content"] = [_part(part, source) for part in made["content"]]
    return made


def _part(part: Any, source: Source) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("image", "image_url"):
        return part
    held = next((part[key] for key in (kind, "url", "path") if part.get(key) is not None), None)
    if isinstance(held, Mapping):
        held = held.get("url", held.get("path"))
    return _picture(held, source)


def _picture(held: Any, source: Source) -> Image:
    """A picture by its data: URL or by the name of a file beside the data."""
    if isinstance(held, Image):
        return held
    if not isinstance(held, str):
        raise Dropped(PICTURE, f"it is {type(held).__name__}; expected a data: URL or the name of a file")
    if held[:5].lower() == "data:":
        return Image(held)
    if "://" in held[:16]:
        raise Dropped(PICTURE, f"{held!r:.80} is an address; nothing is fetched here")
    folder = source.place.path.parent.resolve()
    path = (folder / Path(held)).resolve()
    if not path.is_relative_to(folder):
        raise Dropped(PICTURE, f"{held!r:.80} lies outside of the data's folder")
    if not path.is_file():
        raise Dropped(PICTURE, f"there is no file {path}")
    return PictureFile(path)
