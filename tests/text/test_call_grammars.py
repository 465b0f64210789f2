"""Grammars of calls: whatever an answer says that is held to one, the format's own parser reads calls of the offered tools in it, whose
arguments are what the tools' schemas say. Answers are drawn blindly, so luck cannot help."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from herd.errors import UsageError
from herd.providers.constraining import spelling
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.sampling.grammar import Grammars
from herd.text.formats import ChatFormat
from herd.text.formats.chatml import ChatML
from herd.text.formats.jinja import Jinja
from herd.text.formats.languages import arguments_schema, tool_rule
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import Llama3
from herd.text.formats.llama4 import Llama4, MuseGlimmer
from herd.text.formats.meta import MetaLlama3, MetaLlama4
from herd.text.formats.parsing import Piece
from herd.text.tools import BuiltIn, Tool, ToolCall, read_tools
from text import vocabularies

BYTES = vocabularies.tokenizer("llama-bpe")
HERMES = '{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call>\n{"name": <n>, "arguments": <a>}\n</tool_call>'
PYTHONIC = "[func_name1(params_name1=params_value1)]{% for t in tools %}{{ t | tojson }}{% endfor %}"
TAGGED = "<function=name>{}</function>{% for t in tools %}{{ t | tojson }}{% endfor %}"
PLAIN = '{"name": <n>, "arguments": <a>}{% for t in tools %}{{ t | tojson }}{% endfor %}'
FORMATS: dict[str, tuple[ChatFormat, bool]] = {  # and whether an answer may have several calls
    "llama3.1": (Llama3(BYTES, "llama3.1"), False),
    "llama3.2": (Llama3(BYTES, "llama3.2"), False),
    "llama4": (Llama4(BYTES), True),
    "muse-glimmer": (MuseGlimmer(BYTES), True),
    "meta-llama3.1": (MetaLlama3(BYTES), False),
    "meta-llama3.2": (MetaLlama3(BYTES, pythonic=True), True),
    "meta-llama4": (MetaLlama4(BYTES), True),
    "meta-llama4 as JSON": (MetaLlama4(BYTES, pythonic=False), False),
    "hermes": (Jinja(BYTES, source=HERMES), True),
    "jinja, pythonic": (Jinja(BYTES, source=PYTHONIC), True),
    "jinja, tagged": (Jinja(BYTES, source=TAGGED), False),
    "jinja, JSON": (Jinja(BYTES, source=PLAIN), False),
}
ALL = pytest.mark.parametrize("name", FORMATS)
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "exact": {"type": "boolean"},
        "unit": {"enum": ["C", 'the "F"', "K\\"]},
        "near": {"$ref": "#/$defs/point"},
        "tags": {"type": "array", "items": {"type": ["string", "null"], "maxLength": 3}, "maxItems": 2},
    },
    "required": ["days", "unit"],
    "$defs": {
        "point": {"type": "object", "properties": {"x": {"type": "number"}, "ok": {"type": "boolean"}}, "required": ["x"],
                  "additionalProperties": False}
    },
}  # fmt: skip
TOOLS = read_tools(
    [
        {"type": "function", "function": {"name": "get.Weather", "parameters": WEATHER, "strict": True}},
        {"type": "function", "function": {"name": "now"}},
        {"type": "function", "function": {"name": "files/list-all", "parameters": {"type": "object", "properties": {
            "from": {"type": "string", "maxLength": 5}, "not a name": {"const": [1, None]}}, "required": ["from"]}}},
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(lambda: spelling(BYTES, BYTES.vocab_size))
    yield made
    made.close()


def drawn(grammars: Grammars, grammar: str, stop_ids: frozenset[int], seed: int) -> list[int]:
    """An answer without its stop token."""
    matcher = grammars.matcher(Constraint(ConstraintKind.GRAMMAR, grammar), stop_ids)
    chance, ids = random.Random(seed), list[int]()
    while not matcher.is_done:
        (mask,) = matcher.allowed()
        choices = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
        ends = [token for token in choices if token in stop_ids]
        if ends and chance.random() < 0.4:
            break
        ids.append(chance.choice([token for token in choices if token not in stop_ids] or choices))
        if ids[-1] in stop_ids:
            break
        matcher.advance(ids[-1])
        assert len(ids) < 4000
    return ids


def calls_of(chat_format: ChatFormat, ids: list[int], tools: Any = TOOLS) -> list[ToolCall]:
    """The calls in an answer, which has no other text than white space."""
    parser = chat_format.parser(tools)
    pieces: list[Piece] = [*parser.push(ids), *parser.finish()]
    assert not "".join(piece.text for piece in pieces).strip(), "".join(piece.raw for piece in pieces)
    return [call for piece in pieces for call in piece.calls]


def check_arguments(call: ToolCall) -> None:
    given = dict(call.arguments)
    if call.name == "now":
        assert given == {}
    elif call.name == "files/list-all":
        assert {"from"} <= set(given) <= {"from", "not a name"} and isinstance(given["from"], str)
        assert given.get("not a name", [1, None]) == [1, None]
    else:
        assert call.name == "get.Weather"
        assert {"days", "unit"} <= set(given) <= set(WEATHER["properties"])  # type: ignore[arg-type]
        assert type(given["days"]) is int and 1 <= given["days"] <= 14
        assert given["unit"] in ("C", 'the "F"', "K\\")
        assert isinstance(given.get("exact", True), bool)
        assert 1 <= len(given.get("city", "x")) <= 12
        assert isinstance(given.get("near", {"x": 1})["x"], int | float)
        assert all(tag is None or len(tag) <= 3 for tag in given.get("tags", []))


@ALL
def test_an_answer_held_to_the_grammar_is_calls_of_the_offered_tools(grammars: Grammars, name: str) -> None:
    chat_format, several = FORMATS[name]
    grammar, counts, called = chat_format.call_grammar(TOOLS), set(), set()
    for seed in range(25):
        calls = calls_of(chat_format, drawn(grammars, grammar, chat_format.stop_ids, seed))
        assert calls
        for call in calls:
            check_arguments(call)
        counts.add(len(calls))
        called |= {call.name for call in calls}
    assert called == {"get.Weather", "now", "files/list-all"}
    assert (max(counts) > 1) == several


@ALL
def test_one_call_is_one_call_and_a_named_tool_is_that_tool(grammars: Grammars, name: str) -> None:
    chat_format, _ = FORMATS[name]
    for tool in TOOLS:
        grammar = chat_format.call_grammar([tool], parallel=False)
        for seed in range(6):
            (call,) = calls_of(chat_format, drawn(grammars, grammar, chat_format.stop_ids, seed))
            assert isinstance(tool, Tool) and call.name == tool.name
            check_arguments(call)


@pytest.mark.parametrize("name", ["llama3.1", "meta-llama3.1", "meta-llama3.2"])
def test_built_in_tools_are_called_behind_their_control_token(grammars: Grammars, name: str) -> None:
    chat_format, _ = FORMATS[name]
    for tool in (BuiltIn.BRAVE_SEARCH, BuiltIn.WOLFRAM_ALPHA):
        grammar = chat_format.call_grammar([tool])
        for seed in range(4):
            ids = drawn(grammars, grammar, chat_format.stop_ids, seed)
            assert ids[0] == BYTES.special_ids["<|python_tag|>"]
            (call,) = calls_of(chat_format, ids, [tool])
            assert call.name == tool.value and set(call.arguments) == {"query"}
    ids = [*drawn(grammars, chat_format.call_grammar([BuiltIn.CODE_INTERPRETER]), chat_format.stop_ids, 1)]
    assert calls_of(chat_format, ids, [BuiltIn.CODE_INTERPRETER])


def test_formats_without_calls_say_so() -> None:
    for chat_format in (ChatML(BYTES), Llama3(BYTES, "llama3"), Llama2(vocabularies.sentencepiece())):
        with pytest.raises(UsageError, match="defines none"):
            chat_format.call_grammar(TOOLS)


def test_a_strict_tool_is_held_to_every_keyword_or_refused(grammars: Grammars) -> None:
    chat_format, _ = FORMATS["llama3.1"]
    for strict in (True, False):
        parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "items": {"const": 1}, "maxItems": 2}}}
        (tool,) = read_tools([{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}}])
        grammar = chat_format.call_grammar([tool])
        if strict:
            with pytest.raises(UsageError, match="uniqueItems"):
                drawn(grammars, grammar, chat_format.stop_ids, 1)
        else:
            assert calls_of(chat_format, drawn(grammars, grammar, chat_format.stop_ids, 1), [tool])


def test_what_arguments_are_held_to() -> None:
    assert arguments_schema(Tool("f")) == {"type": "object", "properties": {}, "additionalProperties": False}
    assert arguments_schema(Tool("f", "", {"type": "object"})) == {"type": "object"}
    assert arguments_schema(Tool("f", "", {"properties": {}, "additionalProperties": True}))["additionalProperties"] is True
    with pytest.raises(UsageError, match="x-guidance"):
        arguments_schema(Tool("f", "", {"x-guidance": {}}))


def test_rules_of_different_tools_have_different_names() -> None:
    names = ["a.b", "a_b", "a-b", "A.b", "a.B", "a_2eb", "AB", "ab", "aB", "Ab", "a:b"]
    assert len({tool_rule(name) for name in names}) == len(names)
    assert all(tool_rule(name).replace("_", "a").isalnum() and tool_rule(name).islower() for name in names)
