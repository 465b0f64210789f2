"""Which chat format a model has: by its template, or by the name that the family knows it by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from herd.errors import UsageError
from herd.text.formats.chatml import ChatML
from herd.text.formats.code_llama_70b import CodeLlama70B
from herd.text.formats.guard import VERSIONS as GUARDS
from herd.text.formats.guard import Guard
from herd.text.formats.jinja import Jinja
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import VERSIONS as LLAMA3
from herd.text.formats.llama3 import Llama3
from herd.text.formats.llama4 import Llama4, MuseGlimmer
from herd.text.formats.meta import MetaLlama3, MetaLlama4
from herd.text.formats.parts import ChatFormat, Conversation, read_conversation, to_text
from herd.text.tokenizer import Tokenizer

# ChatML as SmolLM2's template writes it; the group is the system message of conversations without one.
_CHATML = re.compile(
    r"\{% for message in messages %\}"
    r"(?:\{% if loop\.first and messages\[0\]\['role'\] != 'system' %\}"
    r"\{\{ '<\|im_start\|>system(?:\n|\\n)(?P<system>[^'\\{}]*)<\|im_end\|>(?:\n|\\n)' \}\}\{% endif %\})?"
    r"\{\{'<\|im_start\|>' \+ message\['role'\] \+ '(?:\n|\\n)' \+ message\['content'\] \+ '<\|im_end\|>' \+ '(?:\n|\\n)'\}\}"
    r"\{% endfor %\}\{% if add_generation_prompt %\}\{\{ '<\|im_start\|>assistant(?:\n|\\n)' \}\}\{% endif %\}\s*"
)

_BY_NAME: dict[str, Callable[[Tokenizer], ChatFormat]] = {
    "chatml": ChatML,
    "llama2": Llama2,
    "code-llama-70b": CodeLlama70B,
    **{version: lambda tokenizer, version=version: Llama3(tokenizer, version) for version in LLAMA3},  # type: ignore[misc]
    "llama3.3": lambda tokenizer: Llama3(tokenizer, "llama3.1"),
    "llama4": Llama4,
    "muse-glimmer": MuseGlimmer,
    **{version: lambda tokenizer, version=version: Guard(tokenizer, version) for version in GUARDS},  # type: ignore[misc]
}
_PUBLISHED = {
    "93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7": "llama3.1",
    "d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f": "llama3.2",
}
"""SHA-256 of templates that Meta published for 3.1 and 3.3, and for 3.2; others are found out by running them."""
NAMES = tuple(_BY_NAME)
"""Formats that can be chosen by name."""


def choose_format(tokenizer: Tokenizer, template: str | None, hint: str | None = None) -> ChatFormat | None:
    """The chat format of a model, bound to its tokenizer, or None for one that has none (a base model).

    template: the model's own Jinja template. hint: a format's name; it wins over the template.
    """
    if hint is not None:
        if hint not in _BY_NAME:
            raise UsageError(f"there is no chat format {hint!r}; known are {', '.join(_BY_NAME)}.")
        return _BY_NAME[hint](tokenizer)
    if template is None:
        return None
    published = _PUBLISHED.get(hashlib.sha256(template.rstrip("\n").encode("utf-8", "replace")).hexdigest())
    if published is not None:
        return _BY_NAME[published](tokenizer)
    found = _CHATML.fullmatch(template)
    if found is not None:
        return ChatML(tokenizer, default_system=found["system"])
    return _guard(template, tokenizer) or _by_probing(template, tokenizer)


def meta_format(chat_format: ChatFormat, hint: str | None = None) -> ChatFormat | None:
    """Meta's own format for a model whose published format is `chat_format`, or None if Meta's code has none for it.

    hint: the format's name in the family, which tells 3.3 from 3.1 (their templates are the same).
    """
    tokenizer, name = chat_format.tokenizer, hint or chat_format.name
    if isinstance(chat_format, Llama2 | CodeLlama70B | Guard):
        return chat_format
    if "<|start_header_id|>" in tokenizer.special_ids and "<|eot_id|>" in tokenizer.special_ids:
        return MetaLlama3(tokenizer, pythonic=name.startswith(("llama3.2", "llama3.3")))
    if "<|header_start|>" in tokenizer.special_ids and name != "muse-glimmer":
        return MetaLlama4(tokenizer)
    return None


def _guard(template: str, tokenizer: Tokenizer) -> Guard | None:
    """A guard's template, by the words that all of them write."""
    if "<BEGIN UNSAFE" not in template:
        return None
    if "<|header_start|>" in template:
        version = "guard4"
    elif "<|start_header_id|>" not in template:
        version = "guard2" if "<|eot_id|>" in tokenizer.special_ids else "guard1"
    elif "UNSAFECONTENT" in template or "<|image|>" in template:
        version = "guard3-vision"
    else:
        version = "guard3" if "S14" in template else "guard3-1b"
    return Guard(tokenizer, version, template=Jinja(tokenizer, source=template))


def _by_probing(template: str, tokenizer: Tokenizer) -> ChatFormat:
    """The known format that writes what the template writes for a few conversations; else the template itself."""
    jinja = Jinja(tokenizer, source=template)
    for known in _candidates(jinja, tokenizer):
        if all(_written(known, jinja, probe) for probe in _PROBES):
            return known
    return jinja


def _candidates(jinja: Jinja, tokenizer: Tokenizer) -> Iterator[ChatFormat]:
    if "<|start_header_id|>" in jinja.source:
        versions = ("llama3.2-vision",) if "<|image|>" in jinja.source else ("llama3.1", "llama3.2", "llama3")
        yield from (Llama3(tokenizer, version) for version in versions)
    if "<|header_start|>" in jinja.source:
        yield Llama4(tokenizer)
    if "<|im_start|>" in jinja.source and "tool" not in jinja.source:
        alone = jinja.probe(_PROBES[0]) or ""
        bos = next((text for text in tokenizer.special_ids if alone.startswith(text + "<|im_start|>")), None)
        system = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n", alone.removeprefix(bos or ""), re.DOTALL)
        yield ChatML(tokenizer, default_system=system[1] if system else None, bos=bos)


def _written(known: ChatFormat, jinja: Jinja, probe: Conversation) -> bool:
    """Whether the known format writes this conversation as the template does; what it refuses or lacks is not compared with it."""
    if (probe.images and not known.image_token) or not _offers(known, probe):
        return True
    try:
        ours = to_text(known.parts(probe))
    except UsageError:
        return jinja.probe(probe) is None
    return jinja.probe(probe) == ours


def _offers(known: ChatFormat, probe: Conversation) -> bool:
    """Whether the format has what the probe tries."""
    if isinstance(known, ChatML) or known.name == "llama3":
        return not probe.has_tools
    return not probe.built_ins or known.name == "llama3.1"


def _probe(*turns: tuple[str, Any], tools: tuple[Any, ...] = ()) -> Conversation:
    return read_conversation([{"role": role, **_content(content)} for role, content in turns], tools)


def _content(content: Any) -> dict[str, Any]:
    if isinstance(content, dict):
        return {"tool_calls": [{"function": content}]}
    return {"content": content}


_TOOL = {"type": "function", "function": {"name": "f", "description": 'é "d"', "parameters": {"type": "object", "properties": {}}}}
_CALL = {"name": "f", "arguments": {"a": 'x "y" é', "b": [1, True, None]}}
_PICTURE = {"type": "image", "image": b"picture"}
_PROBES = (
    _probe(("user", "One?")),
    _probe(("system", "Be brief."), ("user", "One?")),
    _probe(("user", "One?"), ("assistant", "1."), ("user", "Two?")),
    _probe(("system", " \n a \n"), ("user", "\t b  "), ("assistant", "\n\nc\n"), ("user", " d")),
    _probe(("system", "<a>x</a>"), ("user", "{{ 1 }} <think>"), ("assistant", "<think>\nx</think>\ny"), ("user", "")),
    _probe(("system", "s"), ("user", " u "), ("assistant", _CALL), ("tool", '"4" ü'), ("assistant", "a"), tools=(_TOOL,)),
    _probe(("user", " u "), ("assistant", _CALL), ("tool", " 4"), tools=(_TOOL, "brave_search", "code_interpreter")),
    _probe(("user", "u"), ("assistant", {"name": "brave_search", "arguments": {"query": "q"}}), tools=("brave_search",)),
    replace(_probe(("user", "One?")), date="27 Jul 2024"),
    _probe(("user", [_PICTURE, {"type": "text", "text": " b "}]), ("assistant", " c "), ("user", ["d", _PICTURE, "e"])),
    _probe(("system", "s"), ("user", [_PICTURE, "b"])),
)
