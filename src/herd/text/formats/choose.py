"""Which chat format a model has: by its template, or by the name that the family knows it by."""

from __future__ import annotations

import re

from herd.errors import UsageError
from herd.text.formats.chatml import ChatML
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import Llama3
from herd.text.formats.llama4 import Llama4
from herd.text.formats.parts import ChatFormat
from herd.text.tokenizer import Tokenizer

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
    return ChatML(default_system=found["system"]) if found else None
