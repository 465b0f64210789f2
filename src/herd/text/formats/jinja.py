"""A model's own chat template, run in the sandbox, with content kept apart from scaffolding.

A template gives one text, in which a message could fake a control token. So it is rendered twice: with the real contents, and with
a mark in place of each. Where the marks come out is where contents are; if the real text is the marked one with every mark
replaced by its content (as it is, stripped, or JSON-quoted), control tokens are looked for in the template's own pieces only.

Templates that do other things with contents (cut them, look into them) cannot be told apart so. Then a conversation that
contains the text of any control token is refused, and the control tokens must be those of the marked text, one for one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, final

from herd.errors import FileProblem, UsageError
from herd.text.formats.llama3 import DATE
from herd.text.formats.parts import Control, Part, ends, to_ids
from herd.text.messages import Message
from herd.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

SOURCE_MAX = 1 << 15
_DATE_FORMATS = ("%d %b %Y", "%Y-%m-%d", "%d %B %Y")
# Private-use characters: no letters of any script, and no white space that a template could strip.
_MARK = re.compile("\ue0f0([0-9]+)\ue0f1")


@final
class Jinja:
    """A chat format given by a template. Immutable but for the compiled template, which is made when first needed."""

    name = "jinja"

    def __init__(self, source: str) -> None:
        self.source = source
        self._compiled: Template | None = None

    @property
    def label(self) -> str:
        """How messages call this template: its size and the beginning of its SHA-256."""
        return f"Jinja, {len(self.source)} characters, sha256 {hashlib.sha256(self.source.encode('utf-8', 'replace')).hexdigest()[:12]}"

    def render(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, date: str | None = None
    ) -> list[int]:
        """See `ChatFormat.render`. `FileProblem` for a template that is damaged or does too much; `UsageError` if it refuses."""
        return to_ids(self.parts(messages, tokenizer, add_generation_prompt=add_generation_prompt, date=date), tokenizer)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """What the tokenizer says."""
        return ends(tokenizer, ())

    def parts(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True, date: str | None = None
    ) -> list[Part]:
        """The prompt, scaffolding and content apart."""
        contents = [message.content for message in messages]
        marks = [_mark(index) if content.strip() else content for index, content in enumerate(contents)]
        if any(_MARK.search(content) for content in contents):
            raise UsageError("a message contains the private-use characters U+E0F0 and U+E0F1 around a number, which are reserved here.")
        names = _special_texts(tokenizer)
        text = self.text(messages, contents, names, add_generation_prompt=add_generation_prompt, date=date)
        try:
            marked = self.text(messages, marks, names, add_generation_prompt=add_generation_prompt, date=date)
        except (UsageError, FileProblem):
            marked = ""
        pieces = _apart(text, marked, contents)
        if pieces is not None:
            return [part for piece, is_content in pieces for part in ([piece] if is_content else _found(piece, tokenizer))]
        return _checked(text, marked, messages, tokenizer)

    def text(
        self,
        messages: Sequence[Message],
        contents: Sequence[str],
        specials: Mapping[str, str],
        *,
        add_generation_prompt: bool = True,
        date: str | None = None,
    ) -> str:
        """What the template writes for these roles and contents; for people and for comparing, not for encoding.

        specials: `bos_token` and `eos_token` for templates that ask for them.
        """
        from herd.text.formats.budget import Budget, begin

        given = {"date_string": date} if date is not None else {}
        values = [{"role": message.role.value, "content": content} for message, content in zip(messages, contents, strict=True)]
        with self._problems():
            compiled = self._compiled = self._compiled or self._compile()
            begin(Budget(len(messages), sum(map(len, contents))))
            return compiled.render(
                messages=values,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=_clock(date),
                **specials,
                **given,
            )

    def probe(self, messages: Sequence[Message], tokenizer: Tokenizer) -> str | None:
        """`text` with the model's own names, or None if the template fails or refuses."""
        try:
            return self.text(messages, [message.content for message in messages], _special_texts(tokenizer))
        except (UsageError, FileProblem):
            return None

    def _compile(self) -> Template:
        from herd.text.formats.sandbox import Sandbox

        if len(self.source) > SOURCE_MAX:
            raise FileProblem(f"the chat template of this model ({self.label}) is longer than {SOURCE_MAX} characters.")
        return Sandbox().from_string(self.source)

    def _problems(self) -> Any:
        from herd.text.formats.problems import template_problems

        return template_problems(self.label)


def _mark(index: int) -> str:
    return f"\ue0f0{index}\ue0f1"


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


def _checked(text: str, marked: str, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Part]:
    """The text as the template wrote it, if no message can have brought a control token into it."""
    for index, message in enumerate(messages):
        found = next((part for part in tokenizer.split_specials(message.content) if not isinstance(part, str)), None)
        if found is not None:
            raise UsageError(
                f"messages[{index}] contains {tokenizer.special_text(found)}, a control token of this model, and its chat template"
                " changes contents in a way that does not let them be told from its own text. Write it differently."
            )
    parts = list(_found(text, tokenizer))
    expected = [part for part in _found(marked, tokenizer) if isinstance(part, Control)]
    if [part for part in parts if isinstance(part, Control)] != expected:
        raise UsageError("the messages change which control tokens this model's chat template writes; that is not allowed.")
    return parts
