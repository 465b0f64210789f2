"""A model's own chat template, run in the sandbox, with content kept apart from scaffolding.

A template gives one text, in which a message could fake a control token. So it is rendered twice: with the real contents, and with
a mark in place of each. Where the marks come out is where contents are; if the real text is the marked one with every mark
replaced by its content (as it is, stripped, or JSON-quoted), control tokens are looked for in the template's own pieces only.

Contents are the texts of messages, and every text in tools, calls and their results that has a character of control tokens (the
others are left as they are, since templates compare names and types).

Templates that do other things with contents (cut them, look into them) cannot be told apart so. Then a conversation that
contains the text of any control token is refused, and the control tokens must be those of the marked text, one for one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import TYPE_CHECKING, Any, final

from herd.errors import FileProblem, UsageError
from herd.records import dataclass
from herd.text.formats import languages
from herd.text.formats.begun import Head
from herd.text.formats.llama3 import DATE
from herd.text.formats.llama4 import expand_images, expand_llama4
from herd.text.formats.parsing import Marks
from herd.text.formats.parts import ChatFormat, Control, Conversation, Grid, Part
from herd.text.messages import Image, Message, Role
from herd.text.tokenizer import Tokenizer
from herd.text.tools import BuiltIn, Tool

if TYPE_CHECKING:
    from jinja2 import Template

SOURCE_MAX = 1 << 15
_DATE_FORMATS = ("%d %b %Y", "%Y-%m-%d", "%d %B %Y")
_IMAGE_TOKENS = ("<|image|>", "<image>", "<|patch|>", "<|image_pad|>")
_MARKS = (Marks("<|python_tag|>"), Marks("<|python_start|>", "<|python_end|>"))
# Private-use characters: no letters of any script, and no white space that a template could strip.
_MARK = re.compile("\ue0f0([0-9]+)\ue0f1")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a template is given: messages and tools, with `contents` (or marks for them) at their places."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    built_ins: list[str] | None
    contents: list[str]


@final
@dataclass(frozen=True)
class Jinja(ChatFormat):
    """A chat format given by a template. The compiled template is made when first needed."""

    source: str = ""
    _compiled: list[Template] = field(default_factory=list, compare=False, repr=False)

    @property
    def name(self) -> str:
        return "jinja"

    @property
    def image_token(self) -> str:  # type: ignore[override]
        return next((name for name in _IMAGE_TOKENS if name in self.source and name in self.tokenizer.special_ids), "")

    @property
    def marks(self) -> Marks:  # type: ignore[override]
        return next((marks for marks in _MARKS if marks.begin in self.tokenizer.special_ids), Marks())

    @property
    def _notation(self) -> str:
        """How the template shows that calls are written."""
        shown = {"<tool_call>": "hermes", "<function=": "tagged", "func_name1(": "python"}
        return next((name for sign, name in shown.items() if sign in self.source), "json")

    @property
    def _key(self) -> str:
        """What the template calls arguments, where they are JSON."""
        return "arguments" if '"arguments"' in self.source and '"parameters"' not in self.source else "parameters"

    def call_grammar(self, tools: Sequence[Tool | BuiltIn], *, parallel: bool = True) -> str:
        """In the notation that the template shows: tagged, in Python's, else JSON."""
        grammar, functions = languages.Grammar(), [tool for tool in tools if isinstance(tool, Tool)]
        calls = languages.built_in_calls(grammar, tools, self.mark(self.marks.begin)) if self.marks.begin else []
        if functions and self._notation == "hermes":
            named = " | ".join(languages.json_calls(grammar, functions, key="arguments"))
            one = f'{self.mark("<tool_call>")} "\\n" ({named}) "\\n" {self.mark("</tool_call>")}'
            calls.append(languages.several(one, '"\\n"', parallel=parallel))
        elif functions and self._notation == "tagged":
            calls += languages.tagged_calls(grammar, functions)
        elif functions and self._notation == "python":
            calls.append(languages.python_calls(grammar, functions, parallel=parallel))
        elif functions:
            calls += languages.json_calls(grammar, functions, key=self._key)
        return grammar.text(" | ".join(calls)) if calls else super().call_grammar(tools)

    def call_heads(self, tools: Sequence[Tool | BuiltIn]) -> Mapping[str, Head]:
        heads: dict[str, Head] = languages.built_in_heads(tools, self.marks.begin) if self.marks.begin else {}
        if self._notation == "hermes":
            # Control tokens are no part of the text that is parsed.
            begin, end = ("" if name in self.tokenizer.special_ids else name for name in ("<tool_call>", "</tool_call>"))
            lead = f"{begin}\n" if begin else ""
            return heads | languages.json_heads(tools, key="arguments", begin=lead + "{", end="}\n" + end)
        if self._notation == "tagged":
            return heads | languages.tagged_heads(tools)
        if self._notation == "python":
            return heads | languages.python_heads(tools)
        return heads | languages.json_heads(tools, key=self._key)

    @property
    def label(self) -> str:
        """How messages call this template: its size and the beginning of its SHA-256."""
        return f"Jinja, {len(self.source)} characters, sha256 {hashlib.sha256(self.source.encode('utf-8', 'replace')).hexdigest()[:12]}"

    def parts(self, conversation: Conversation) -> list[Part]:
        """The prompt. `FileProblem` for a template that is damaged or does too much; `UsageError` if it refuses."""
        inputs, texts = self._marked(conversation, lambda at, content: content), self._texts(conversation)
        if any(_MARK.search(content) for content in texts):
            raise UsageError("a message contains the private-use characters U+E0F0 and U+E0F1 around a number, which are reserved here.")
        text = self._rendered(inputs, conversation)
        try:
            marked = self._rendered(self._marked(conversation, lambda at, content: f"\ue0f0{at}\ue0f1"), conversation)
        except (UsageError, FileProblem):
            marked = ""
        pieces = _apart(text, marked, inputs.contents)
        if pieces is not None:
            return [part for piece, is_content in pieces for part in ([piece] if is_content else _found(piece, self.tokenizer))]
        return _checked(text, marked, texts, self.tokenizer)

    def expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """As the model's release has pictures; Muse-Glimmer's patches get their two control tokens if the template wrote none."""
        known = self.tokenizer.special_ids
        if self.image_token == "<|image|>" and "<|tile_x_separator|>" in known:
            return expand_llama4(self.tokenizer, ids, grids)
        if self.image_token != "<|patch|>" or "<|image_start|>" not in known:
            return list(ids)
        start, patch, end = (known[name] for name in ("<|image_start|>", "<|patch|>", "<|image_end|>"))
        framed = start in ids
        patches = [[patch] * (grid[0] * grid[1]) for grid in grids]
        return expand_images(ids, patch, patches if framed else [[start, *run, end] for run in patches])

    def text(self, conversation: Conversation) -> str:
        """What the template writes for a conversation; for people and for comparing, not for encoding."""
        return self._rendered(self._marked(conversation, lambda at, content: content), conversation)

    def probe(self, conversation: Conversation) -> str | None:
        """`text`, or None if the template fails or refuses."""
        try:
            return self.text(conversation)
        except (UsageError, FileProblem):
            return None

    def _marked(self, conversation: Conversation, mark: Callable[[int, str], str]) -> _Inputs:
        contents: list[str] = []

        def placed(content: str) -> str:
            contents.append(content)
            return mark(len(contents) - 1, content) if content.strip() else content

        risky = _risky_characters(self.tokenizer)

        def nested(value: Any) -> Any:
            if isinstance(value, str):
                return placed(value) if risky & set(value) else value
            if isinstance(value, list | tuple):
                return [nested(item) for item in value]
            if isinstance(value, Mapping):
                return {nested(str(key)): nested(item) for key, item in value.items()}
            return value

        as_lists = bool(conversation.images)
        messages = [_as_given(message, placed, nested, as_lists=as_lists) for message in conversation.messages]
        tools = [nested(tool.written) for tool in conversation.tools] or None
        return _Inputs(messages, tools, [tool.value for tool in conversation.built_ins] or None, contents)

    def _texts(self, conversation: Conversation) -> list[str]:
        """Every text that comes from outside."""
        pending: list[Any] = [tool.written for tool in conversation.tools]
        texts: list[str] = []
        for message in conversation.messages:
            texts += (message.text, message.name or "", message.tool_call_id or "")
            pending += [(call.name, call.id, call.arguments) for call in message.tool_calls]
        while pending:
            value = pending.pop()
            if isinstance(value, str):
                texts.append(value)
            elif isinstance(value, Mapping):
                pending += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple):
                pending += value
        return texts

    def _rendered(self, inputs: _Inputs, conversation: Conversation) -> str:
        from herd.text.formats.budget import Budget, begin

        date = conversation.date
        given: dict[str, Any] = {"date_string": date} if date is not None else {}
        if inputs.built_ins is not None:
            given["builtin_tools"] = inputs.built_ins
        with self._problems():
            if not self._compiled:
                self._compiled.append(self._compile())
            size = sum(map(len, self._texts(conversation))) + sum(len(json.dumps(tool)) for tool in inputs.tools or ())
            begin(Budget(len(inputs.messages), size))
            return self._compiled[0].render(
                messages=inputs.messages,
                tools=inputs.tools,
                documents=None,
                add_generation_prompt=conversation.add_generation_prompt,
                strftime_now=_clock(date),
                **_special_texts(self.tokenizer),
                **given,
            )

    def _compile(self) -> Template:
        from herd.text.formats.sandbox import Sandbox

        if len(self.source) > SOURCE_MAX:
            raise FileProblem(f"the chat template of this model ({self.label}) is longer than {SOURCE_MAX} characters.")
        return Sandbox().from_string(self.source)

    def _problems(self) -> Any:
        from herd.text.formats.problems import template_problems

        return template_problems(self.label)


def _as_given(message: Message, placed: Callable[[str], str], nested: Callable[[Any], Any], *, as_lists: bool) -> dict[str, Any]:
    """A message in the shape that templates know. as_lists: contents that are lists stay so, as templates with pictures expect."""
    value: dict[str, Any] = {"role": message.role.value}
    if as_lists and not isinstance(message.content, str):
        value["content"] = [
            {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": placed(part.text)} for part in message.content
        ]
    else:
        value["content"] = placed(message.text) if message.text or not message.tool_calls else None
    if message.tool_calls:
        value["tool_calls"] = [
            {"id": nested(call.id), "type": "function", "function": {"name": nested(call.name), "arguments": nested(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.role is Role.TOOL:
        value |= {key: nested(item) for key, item in (("tool_call_id", message.tool_call_id), ("name", message.name)) if item is not None}
    return value


def _risky_characters(tokenizer: Tokenizer) -> frozenset[str]:
    """With which control tokens begin and end; a text without any of them is no part of one."""
    return frozenset(character for text in tokenizer.special_ids for character in (text[0], text[-1]) if not character.isalnum())


def _clock(date: str | None) -> Any:
    """`strftime_now` of Hugging Face's templates, at a date that is given: rendering never reads a clock."""
    moment = None
    for pattern in _DATE_FORMATS:
        try:
            moment = datetime.strptime(date or DATE, pattern)
            break
        except ValueError:
            continue

    def strftime_now(pattern: str) -> str:
        if moment is None:
            raise UsageError(f"date is {date!r}; the model's chat template needs one such as '26 Jul 2024' or '2024-07-26'.")
        if len(pattern) > 64 or re.search(r"%[^a-zA-Z%]*\d", pattern):
            raise UsageError("the model's chat template asks for a date in a form that is not known.")
        return moment.strftime(pattern)

    return strftime_now


def _special_texts(tokenizer: Tokenizer) -> dict[str, str]:
    by_id = {token: text for text, token in tokenizer.special_ids.items()}
    named = {"bos_token": tokenizer.bos_id, "eos_token": next(iter(tokenizer.eos_ids), None)}
    return {name: by_id[token] for name, token in named.items() if token in by_id}


def _found(text: str, tokenizer: Tokenizer) -> Iterator[Part]:
    """A piece of the template's own, with its control tokens."""
    for part in tokenizer.split_specials(text):
        yield part if isinstance(part, str) else Control(tokenizer.special_text(part))


def _apart(text: str, marked: str, contents: Sequence[str]) -> list[tuple[str, bool]] | None:
    """(piece, is content) of the real text, or None if it is not the marked text with contents in place of the marks."""
    pieces: list[tuple[str, bool]] = []
    begin = at = 0
    for mark in [*_MARK.finditer(marked), None]:
        scaffold = marked[begin : mark.start() if mark else len(marked)]
        if not text.startswith(scaffold, at):
            return None
        pieces.append((scaffold, False))
        at += len(scaffold)
        if mark is None:
            break
        begin = mark.end()
        index = int(mark[1])
        following = _MARK.search(marked, begin)
        after = marked[begin : following.start() if following else len(marked)]
        content = _as_written(text, at, contents[index], after) if index < len(contents) else None
        if content is None:
            return None
        pieces.append((content, True))
        at += len(content)
    return pieces if at == len(text) else None


def _as_written(text: str, at: int, content: str, after: str) -> str | None:
    """The form in which `content` stands at this place, followed by `after`."""
    quoted = json.dumps(content, ensure_ascii=False)[1:-1]
    for form in (content, content.strip(), content.rstrip(), content.lstrip(), quoted):
        if text.startswith(form + after, at):
            return form
    return None


def _checked(text: str, marked: str, contents: Sequence[str], tokenizer: Tokenizer) -> list[Part]:
    """The text as the template wrote it, if no message can have brought a control token into it."""
    for content in contents:
        found = next((part for part in tokenizer.split_specials(content) if not isinstance(part, str)), None)
        if found is not None:
            raise UsageError(
                f"the conversation contains {tokenizer.special_text(found)} ({content!r:.60}), a control token of this model, and its"
                " chat template changes contents in a way that does not let them be told from its own text. Write it differently."
            )
    parts = list(_found(text, tokenizer))
    expected = [part for part in _found(marked, tokenizer) if isinstance(part, Control)]
    if [part for part in parts if isinstance(part, Control)] != expected:
        raise UsageError("the messages change which control tokens this model's chat template writes; that is not allowed.")
    return parts
