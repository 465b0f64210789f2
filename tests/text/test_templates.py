"""Templates that we write for formats known by name: they write what the format writes, here and in `transformers`."""

from __future__ import annotations

from typing import Any

import pytest

from herd.errors import UsageError
from herd.text.formats import ChatFormat, choose_format
from herd.text.formats.chatml import ChatML
from herd.text.formats.jinja import Jinja
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import VERSIONS, Llama3
from herd.text.formats.llama4 import Llama4
from herd.text.formats.parts import read_conversation, to_text
from herd.text.formats.templates import template_of
from text import built_in

BYTES, SPACES = built_in.BYTES, built_in.SPACES
FORMATS: list[ChatFormat] = [
    ChatML(BYTES),
    ChatML(BYTES, default_system="Be brief."),
    Llama2(SPACES),
    *(Llama3(BYTES, version) for version in VERSIONS),
    Llama4(BYTES),
]
TOOL = {"type": "function", "function": {"name": "f", "description": 'é "d"', "parameters": {"type": "object", "properties": {}}}}
CALLS = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 'x "y" é', "b": [1, True, None]}}}]}
SEARCH = {"role": "assistant", "tool_calls": [{"function": {"name": "brave_search", "arguments": {"query": "q", "n": "2"}}}]}
PICTURE = {"role": "user", "content": [{"type": "image", "image": b"picture"}, {"type": "text", "text": " b "}]}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS: list[tuple[list[Any], tuple[Any, ...]]] = [
    ([turn("user", "One?")], ()),
    ([turn("system", " \n a \n"), turn("user", "\t b  "), turn("assistant", "\n\nc\n"), turn("user", " d")], ()),
    ([turn("user", "{{ 1 }} 'x' <think>"), turn("assistant", "<think>\nx</think>\ny"), turn("user", "")], ()),
    ([turn("user", "a"), turn("assistant", "b"), turn("user", "c")], ()),
    ([turn("system", "s"), turn("user", " u "), CALLS, turn("tool", '"4" ü'), turn("assistant", "a")], (TOOL,)),
    ([turn("user", "u"), CALLS, turn("tool", "4")], (TOOL, TOOL | {"function": {"name": "g"}})),
    ([turn("user", "u"), SEARCH, turn("tool", "4"), turn("user", "v")], ("brave_search", "code_interpreter")),
    ([turn("user", "u"), CALLS], (TOOL, "brave_search")),
    ([PICTURE, turn("assistant", " c "), turn("user", "d")], ()),
    ([turn("system", "s"), PICTURE], ()),
]


def written(chat_format: ChatFormat, messages: list[Any], tools: tuple[Any, ...], date: str | None = None) -> str | None:
    """What a format writes; None where it refuses."""
    conversation = read_conversation(messages, tools, add_generation_prompt=messages[-1]["role"] == "user", date=date)
    if conversation.images and not chat_format.image_token:
        return None
    try:
        if isinstance(chat_format, Jinja):
            return chat_format.text(conversation)
        pieces = chat_format.pieces(conversation)
        return "".join(to_text(piece) for piece in pieces)
    except UsageError:
        return None


@pytest.mark.parametrize("chat_format", FORMATS, ids=lambda each: each.name)
def test_a_template_writes_what_its_format_does(chat_format: ChatFormat) -> None:
    source = template_of(chat_format)
    assert source is not None
    jinja, compared = Jinja(chat_format.tokenizer, source=source), 0
    for messages, tools in CONVERSATIONS:
        ours = written(chat_format, messages, tools)
        if ours is not None:
            assert written(jinja, messages, tools) == ours
            compared += 1
    assert compared >= 4
    if chat_format.name.startswith("llama3."):
        messages = CONVERSATIONS[1][0]
        assert written(jinja, messages, (), "1 May 2026") == written(chat_format, messages, (), "1 May 2026")
    if chat_format.name != "llama2":
        assert choose_format(chat_format.tokenizer, source) == chat_format, "the format is known again by its template"


@pytest.mark.parametrize("chat_format", FORMATS, ids=lambda each: each.name)
def test_transformers_writes_the_same_from_it(chat_format: ChatFormat) -> None:
    render = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    source, tokenizer, compared = template_of(chat_format), chat_format.tokenizer, 0
    for messages, tools in CONVERSATIONS:
        ours = written(chat_format, messages, tools)
        if ours is None or any(isinstance(tool, str) for tool in tools):
            continue
        names = {"bos_token": tokenizer.special_text(tokenizer.bos_id), "eos_token": tokenizer.special_text(tokenizer.eos_ids[0])}
        offered = {"tools": list(tools)} if tools else {}
        (text,), _ = render(
            conversations=[messages], chat_template=source, add_generation_prompt=messages[-1]["role"] == "user", **offered, **names
        )
        assert text == ours
        compared += 1
    assert compared >= 3


def test_formats_that_no_template_is_here_for_have_none() -> None:
    assert template_of(Jinja(BYTES, source="{{ messages }}")) is None
    assert template_of(ChatML(BYTES, bos="<|begin_of_text|>")) is None
