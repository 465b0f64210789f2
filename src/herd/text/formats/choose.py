"""Which chat format a model has: by its template, or by the name that the family knows it by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from herd.errors import UsageError
from herd.text.formats.chatml import ChatML
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import Llama3
from herd.text.formats.llama4 import Llama4
from herd.text.formats.parts import ChatFormat, to_text
from herd.text.messages import Message, Role
from herd.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from herd.text.formats.jinja import Jinja

# ChatML as SmolLM2's template writes it; the group is the system message of conversations without one.
_CHATML = re.compile(
    r"\{% for message in messages %\}"
    r"(?:\{% if loop\.first and messages\[0\]\['role'\] != 'system' %\}"
    r"\{\{ '<\|im_start\|>system(?:\n|\\n)(?P<system>[^'\\{}]*)<\|im_end\|>(?:\n|\\n)' \}\}\{% endif %\})?"
    r"\{\{'<\|im_start\|>' \+ message\['role'\] \+ '(?:\n|\\n)' \+ message\['content'\] \+ '<\|im_end\|>' \+ '(?:\n|\\n)'\}\}"
    r"\{% endfor %\}\{% if add_generation_prompt %\}\{\{ '<\|im_start\|>assistant(?:\n|\\n)' \}\}\{% endif %\}\s*"
)

_BY_NAME: dict[str, ChatFormat] = {
    "chatml": ChatML(),
    "llama2": Llama2(),
    "llama3": Llama3(has_dates=False),
    "llama3.1": Llama3(has_dates=True),
    "llama4": Llama4(),
}


def choose_format(tokenizer: Tokenizer, template: str | None, hint: str | None = None) -> ChatFormat | None:
    """The chat format of a model, or None for one that has none (a base model).

    template: the model's own Jinja template. hint: a format's name; it wins over the template.
    """
    if hint is not None:
        if hint not in _BY_NAME:
            raise UsageError(f"there is no chat format {hint!r}; known are {', '.join(_BY_NAME)}.")
        return _BY_NAME[hint]
    if template is None:
        return None
    found = _CHATML.fullmatch(template)
    return ChatML(default_system=found["system"]) if found else _by_probing(template, tokenizer)


def _by_probing(template: str, tokenizer: Tokenizer) -> ChatFormat:
    """The known format that writes what the template writes for a few conversations; else the template itself."""
    from herd.text.formats.jinja import Jinja

    jinja = Jinja(template)
    for known in _candidates(jinja, tokenizer):
        if all(_written(known, jinja, probe, tokenizer) for probe in _PROBES):
            return known
    return jinja


def _candidates(jinja: Jinja, tokenizer: Tokenizer) -> Iterator[ChatFormat]:
    if "<|start_header_id|>" in jinja.source:
        yield from (Llama3(has_dates=True), Llama3(has_dates=False))
    if "<|header_start|>" in jinja.source:
        yield Llama4()
    if "<|im_start|>" in jinja.source:
        alone = jinja.probe(_PROBES[0], tokenizer) or ""
        bos = next((text for text in tokenizer.special_ids if alone.startswith(text + "<|im_start|>")), None)
        system = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n", alone.removeprefix(bos or ""), re.DOTALL)
        yield ChatML(default_system=system[1] if system else None, bos=bos)


def _written(known: ChatFormat, jinja: Jinja, probe: Sequence[Message], tokenizer: Tokenizer) -> bool:
    """Whether the template writes this conversation as the known format does."""
    assert isinstance(known, ChatML | Llama3 | Llama4)
    return jinja.probe(probe, tokenizer) == to_text(known.parts(probe))


def _conversation(*turns: tuple[Role, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in turns)


_PROBES = (
    _conversation((Role.USER, "One?")),
    _conversation((Role.SYSTEM, "Be brief."), (Role.USER, "One?")),
    _conversation((Role.USER, "One?"), (Role.ASSISTANT, "1."), (Role.USER, "Two?")),
    _conversation((Role.SYSTEM, " \n a \n"), (Role.USER, "\t b  "), (Role.ASSISTANT, "\n\nc\n"), (Role.USER, " d")),
    _conversation((Role.SYSTEM, "<a>x</a>"), (Role.USER, "{{ 1 }} <think>"), (Role.ASSISTANT, "<think>\nx</think>\ny"), (Role.USER, "")),
)
