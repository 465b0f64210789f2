"""Records of the shapes that data comes in, read into samples; the shape is detected from the first record and holds for all.

    messages      {"messages": [{"role", "content"}, ...], "tools"}                 as OpenAI's fine-tuning takes it; pictures too
    sharegpt      {"conversations": [{"from", "value"}, ...], "system", "tools"}
    alpaca        {"instruction", "input", "output", "system", "history"}
    pairs         {"prompt", "completion"} and other names of the two (`PAIRS`), also with an "image"
    text          {"text"}, and text files
    preference    {"prompt" or "conversations", "chosen", "rejected"}, as texts or as messages; "margin": by how much it is better
    judged        {"prompt", "completion", "label"}, the label true or false (KTO)
    task          {"prompt" or "messages", and one of "answer", "tests", "schema", "check"}, or {"prompt"} alone

What is wrong with one record's content drops it, with the reason and the place in the `Account`; keys that a shape does not read are
noted there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from herd.data import conversations as conv
from herd.data.account import Account
from herd.data.conversations import Dropped, Source
from herd.data.reading import Place, Record, find_files, read_records
from herd.data.samples import Chat, Judged, Passage, Preference, Sample, Task
from herd.errors import FileProblem, UsageError, did_you_mean
from herd.text.messages import Role


class Shape(Enum):
    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    PAIRS = "pairs"
    TEXT = "text"
    PREFERENCE = "preference"
    JUDGED = "judged"
    TASK = "task"


PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
    ("inputs", "targets"),
)
"""What prompts and their answers are called. (`instruction` and `output` are alpaca's; `prompt` and `answer` are a task.)"""
CHECKS = ("answer", "tests", "schema", "check")
_ANSWERS = frozenset(answer for _, answer in PAIRS) - {"answer"}
_Json = Mapping[str, Any]


def read_samples(paths: Iterable[str | Path], account: Account, *, shape: str | None = None) -> Iterator[Sample]:
    """The samples of all files, in order; `account` tells afterwards what became of every record.

    shape: one of the names above, where detection would choose another. `FileProblem` for damaged files, a record of another shape than
    the first, or a first record of no known shape.
    """
    found = find_files(paths)
    account.files, account.skipped = found.paths, found.skipped
    yield from samples_of(read_records(found.paths), account, shape=shape)


def samples_of(records: Iterable[Record], account: Account, *, shape: str | None = None) -> Iterator[Sample]:
    """The samples of records that were read."""
    wanted = None if shape is None else shape_named(shape)
    first, kind = None, wanted
    for record in records:
        account.num_read += 1
        here = wanted if wanted is not None and _fits(wanted, record.value) else detect(record.value)
        if first is None:
            first, kind = record.place, wanted or here
            account.shape = None if kind is None else kind.value
        if kind is None or here is not kind:
            raise _mixed(record, here, None if wanted else first, kind)
        try:
            sample = _READERS[kind](record.value, Source(record.place, account))
        except Dropped as drop:
            account.drop(drop.reason, record.place, drop.detail)
            continue
        account.num_kept += 1
        yield sample


def detect(value: _Json) -> Shape | None:
    """The shape of a record, by its keys; None for none that is known. A prompt with nothing of any shape is one to be answered."""
    found = next((shape for shape in _ORDER if _fits(shape, value)), None)
    return Shape.TASK if found is None and "prompt" in value else found


def shape_named(name: str) -> Shape:
    """`UsageError` for a name that is none."""
    names = [shape.value for shape in Shape]
    if name not in names:
        raise UsageError(f"there is no shape {name!r:.60} of data{did_you_mean(name, names)} Known are {', '.join(names)}.")
    return Shape(name)


_ORDER = (
    *(Shape.PREFERENCE, Shape.JUDGED, Shape.TASK, Shape.MESSAGES, Shape.SHAREGPT),
    *(Shape.ALPACA, Shape.PAIRS, Shape.TEXT),
)


def _fits(shape: Shape, value: _Json) -> bool:
    keys = value.keys()
    match shape:
        case Shape.PREFERENCE:
            return {"chosen", "rejected"} <= keys
        case Shape.JUDGED:
            return isinstance(value.get("label"), bool) and (_pair(value) is not None or "messages" in keys)
        case Shape.TASK:
            has_prompt = "prompt" in keys or ("messages" in keys and not _is_answered(value["messages"]))
            return has_prompt and not keys.isdisjoint(CHECKS) and keys.isdisjoint(_ANSWERS)
        case Shape.MESSAGES:
            return _conversation_key(value) is not None
        case Shape.SHAREGPT:
            turns = value.get("conversations", value.get("conversation"))
            return isinstance(turns, list) and _conversation_key(value) is None
        case Shape.ALPACA:
            return {"instruction", "output"} <= keys
        case Shape.PAIRS:
            return _pair(value) is not None
        case Shape.TEXT:
            return "text" in keys


def _is_answered(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") == Role.ASSISTANT.value


def _conversation_key(value: _Json) -> str | None:
    """Under which key messages with roles stand."""
    if "messages" in value:
        return "messages"
    for key in ("conversations", "conversation"):
        turns = value.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and "role" in turns[0]:
            return key
    return None


def _pair(value: _Json) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if pair[0] in value and pair[1] in value), None)


def _mixed(record: Record, here: Shape | None, first: Place | None, kind: Shape | None) -> FileProblem:
    keys = ", ".join(sorted(record.value)[:12]) or "none"
    if kind is None:
        return FileProblem(
            f"{record.place}: the record has the keys {keys}, which is no shape of data that is known here. Known are messages,"
            " conversations, instruction and output, prompt and completion, text, chosen and rejected, label, and prompt with answer,"
            " tests or schema."
        )
    found = "no known shape" if here is None else f"the shape {here.value}"
    if first is None:
        return FileProblem(f"{record.place}: the record has {found} (keys {keys}); {kind.value} is asked for.")
    return FileProblem(
        f"{record.place}: the record has {found} (keys {keys}); {first} has {kind.value}. One data set has one shape: give the others as"
        " sources of their own, or name the shape (--shape)."
    )


# One reader for each shape


def _messages(value: _Json, source: Source) -> Chat:
    key = _conversation_key(value)
    source.note_unused(value, {key or "messages", "tools", "functions", "parallel_tool_calls", "system"})
    given = source.with_system(value, value.get(key or "messages"))
    messages, weights = conv.read_turns(given, source)
    return conv.checked_chat(source, messages, conv.read_offered(value, source), weights)


def _sharegpt(value: _Json, source: Source) -> Chat:
    key = "conversations" if "conversations" in value else "conversation"
    source.note_unused(value, {key, "tools", "system", "image", "images"})
    turns = conv.from_sharegpt(value[key], conv.pictures_given(value), source)
    messages, weights = conv.read_turns(source.with_system(value, turns), source)
    return conv.checked_chat(source, messages, conv.read_offered(value, source), weights)


def _alpaca(value: _Json, source: Source) -> Chat:
    source.note_unused(value, {"instruction", "input", "output", "system", "history", "image", "images"})
    asked, more = source.text(value, "instruction"), source.text(value, "input", optional=True)
    turns: list[Any] = []
    for question, answer in conv.history(value, source):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = conv.with_pictures(f"{asked}\n\n{more}" if more.strip() else asked, conv.pictures_given(value), source)
    turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": source.text(value, "output")}]
    messages, weights = conv.read_turns(source.with_system(value, turns), source)
    return conv.checked_chat(source, messages, (), weights)


def _pairs(value: _Json, source: Source) -> Chat:
    asked, answer = _pair(value) or PAIRS[0]
    source.note_unused(value, {asked, answer, "tools", "system", "image", "images"})
    prompt, is_text = conv.as_messages(value[asked], "user", source)
    if is_text and (pictures := conv.pictures_given(value)):
        prompt, is_text = [{"role": "user", "content": conv.with_pictures(value[asked], pictures, source)}], False
    replies, also_text = conv.as_messages(value[answer], "assistant", source)
    messages, weights = conv.read_turns([*source.with_system(value, prompt), *replies], source)
    is_plain = is_text and also_text and "system" not in value
    return conv.checked_chat(source, messages, conv.read_offered(value, source), weights, is_plain=is_plain)


def _text(value: _Json, source: Source) -> Passage:
    source.note_unused(value, {"text"})
    text = source.text(value, "text")
    if not text.strip():
        raise Dropped(conv.EMPTY)
    return Passage(source.place, text)


def _preference(value: _Json, source: Source) -> Preference:
    source.note_unused(value, {*conv.PROMPTS, "chosen", "rejected", "tools", "system", "margin"})
    tools = conv.read_offered(value, source)
    sides = [conv.side(value, key, source) for key in ("chosen", "rejected")]
    prompt, (chosen, rejected) = conv.common_prompt(sides, source)
    if chosen == rejected:
        raise Dropped(conv.SAME)
    is_plain = isinstance(value.get("prompt"), str) and isinstance(value["chosen"], str) and "system" not in value
    is_plain = is_plain and isinstance(value["rejected"], str)
    return Preference(source.place, prompt, chosen, rejected, tools, is_plain, source.number(value, "margin"))


def _judged(value: _Json, source: Source) -> Judged:
    if _pair(value) is not None:
        chat = _pairs({key: item for key, item in value.items() if key != "label"}, source)
    else:
        chat = _messages({key: item for key, item in value.items() if key != "label"}, source)
    cut = conv.last_question(chat.messages) + 1
    return Judged(source.place, chat.messages[:cut], chat.messages[cut:], value["label"], chat.tools, chat.is_plain)


def _task(value: _Json, source: Source) -> Task:
    checks = {key: value[key] for key in CHECKS if value.get(key) is not None}
    key = "messages" if "messages" in value else "prompt"
    given, is_text = conv.as_messages(value[key], "user", source)
    turns, _ = conv.read_turns(source.with_system(value, given), source)
    messages = conv.checked_prompt(turns, source)
    facts = {name: item for name, item in value.items() if name not in (key, "tools", "system", *CHECKS)}
    return Task(source.place, messages, checks, facts, conv.read_offered(value, source), is_text and "system" not in value)


_READERS: dict[Shape, Callable[[_Json, Source], Sample]] = {
    Shape.MESSAGES: _messages,
    Shape.SHAREGPT: _sharegpt,
    Shape.ALPACA: _alpaca,
    Shape.PAIRS: _pairs,
    Shape.TEXT: _text,
    Shape.PREFERENCE: _preference,
    Shape.JUDGED: _judged,
    Shape.TASK: _task,
}
