"""Answers read as they arrive: calls in every notation, nothing lost, nothing raised, however the answer is cut."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from herd.text.formats import ChatFormat
from herd.text.formats.chatml import ChatML
from herd.text.formats.llama2 import Llama2
from herd.text.formats.llama3 import VERSIONS, Llama3
from herd.text.formats.llama4 import Llama4, MuseGlimmer
from herd.text.formats.meta import MetaLlama3, MetaLlama4
from herd.text.formats.parsing import FAILURES_MAX, Marks, Piece, StreamParser
from herd.text.messages import Role
from text import vocabularies

BYTES = vocabularies.tokenizer("llama-bpe")
LLAMA3, LLAMA4 = Marks("<|python_tag|>"), Marks("<|python_start|>", "<|python_end|>")
FORMATS: list[ChatFormat] = [
    ChatML(BYTES),
    *(Llama3(BYTES, version) for version in VERSIONS),
    *(made(BYTES) for made in (Llama4, MuseGlimmer, MetaLlama3, MetaLlama4)),
    Llama2(vocabularies.sentencepiece()),
]
ALL = pytest.mark.parametrize("chat_format", FORMATS, ids=lambda value: value.name)
Shown = list[tuple[str, list[tuple[str, dict[str, Any]]]]]


def read(text: str, marks: Marks = LLAMA3, names: Sequence[str] | None = None, cuts: Sequence[int] = ()) -> list[Piece]:
    """The pieces of an answer that arrives cut at `cuts`."""
    parser = StreamParser(marks, None if names is None else frozenset(names))
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [piece for start, end in itertools.pairwise(edges) for piece in parser.push(text[start:end])]
    return pieces + parser.finish()


def shown(pieces: Sequence[Piece]) -> Shown:
    return [(piece.text, [(call.name, dict(call.arguments)) for call in piece.calls]) for piece in pieces]


def calls(text: str, marks: Marks = LLAMA3, names: Sequence[str] | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The calls of an answer that has nothing else."""
    pieces = read(text, marks, names)
    assert "".join(piece.text for piece in pieces).strip() == "", pieces
    return [call for piece in shown(pieces) for call in piece[1]]


def only_text(text: str, marks: Marks = LLAMA3, names: Sequence[str] | None = None) -> bool:
    pieces = read(text, marks, names)
    return not any(piece.calls for piece in pieces) and "".join(piece.text for piece in pieces) == text


# Notations


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "parameters": {"a": 1}}',
        '\n {"name":"f","arguments":{"a":1}}\n',
        '{"type": "function", "name": "f", "parameters": {"a": 1}}',
        '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}, "id": "x"}',
        '{"function": "f", "parameters": {"a": 1}}',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
        '[{"name": "f", "parameters": {"a": 1}}]',
        "[f(a=1)]",
        "[ f ( a = 1 ) ]",
        '<function=f>{"a": 1}</function>',
        '<function=f>{"a": 1}',
        "<function=f>{'a': 1}</function>",
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}',
        "<|python_tag|>[f(a=1)]",
        "<|python_tag|>f.call(a=1)",
        '<|python_tag|> <function=f>{"a": 1}</function>',
    ],
)
def test_a_call_is_read_in_every_notation(text: str) -> None:
    for names in (None, ["f"], ["g", "f"]):
        assert calls(text, names=names) == [("f", {"a": 1})]


def test_several_calls_are_read_in_order() -> None:
    expected = [("f", {"a": "x, y"}), ("g.h", {"b": [1, -2.5, {"c": None}], "d": True})]
    assert calls("[f(a='x, y'), g.h(b=[1, -2.5, {'c': None}], d=True)]") == expected
    assert calls("[f(a=\"x, y\"), g.h(b=(1, -2.5, {'c': null}), d=true)]") == expected
    one, two = '{"name": "f", "parameters": {"a": "x, y"}}', '{"name": "g.h", "parameters": {"b": [1, -2.5, {"c": null}], "d": true}}'
    assert [call for _, found in shown(read(f"{one}; {two}")) for call in found] == expected
    assert [call for _, found in shown(read(f"{one}\n{two}")) for call in found] == expected
    assert calls(f"<tool_call>{one}</tool_call>\n<tool_call>{two}</tool_call>") == expected
    assert calls(f"<|python_start|><|python_end|>{one}{two}", LLAMA4) == expected


def test_built_in_tools_are_called_with_or_without_the_tag() -> None:
    for lead in ("", "<|python_tag|>"):
        assert calls(f'{lead}brave_search.call(query="gold")') == [("brave_search", {"query": "gold"})]
    assert calls('<|python_tag|>wolfram_alpha.call(query="a "b" \\n c")') == [("wolfram_alpha", {"query": 'a "b" \\n c'})]


def test_what_is_no_call_behind_the_tag_is_code() -> None:
    code = "def f(x):\n    return {'a': [x]}\nprint(f(1))"
    assert calls(f"<|python_tag|>{code}") == [("code_interpreter", {"code": code})]
    assert calls(f"<|python_start|>{code}<|python_end|>", LLAMA4) == [("code_interpreter", {"code": code})]
    assert shown(read(f"<|python_start|>{code}<|python_end|> So.", LLAMA4))[1:] == [(" So.", [])]
    assert calls(f"<|python_start|>{code}", LLAMA4) == [("code_interpreter", {"code": code})]


def test_text_that_llama4s_template_puts_before_calls_is_text() -> None:
    answer = '<|python_start|>Let me look.<|python_end|>{"name": "f", "parameters": {}}'
    assert shown(read(answer, LLAMA4)) == [("Let me look.", []), ("", [("f", {})])]


def test_text_around_calls_stays_text() -> None:
    assert shown(read('Now <function=f>{"a": 1}</function> done.')) == [("Now ", []), ("", [("f", {"a": 1})]), (" done.", [])]
    assert shown(read("[f(a=1)] and more")) == [("", [("f", {"a": 1})]), (" and more", [])]
    assert shown(read('Look:<|python_tag|>{"name": "f", "parameters": {}} ok')) == [("Look:", []), ("", [("f", {})]), (" ok", [])]
    assert shown(read('I ask:\n  {"name": "f", "parameters": {}}\nThen.', names=["f"])) == [
        ("I ask:", []),
        ("", [("f", {})]),
        ("\nThen.", []),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "{",
        "{}",
        "A set { is } [not] a call.",
        '{"answer": 5}',
        '{"name": "Ann", "age": 5}',
        '{"name": "f", "parameters": 5}',
        '{"name": "f g", "parameters": {}}',
        '{"name": "f", "parameters": {"a": NaN}}',
        '{"name": "f", "parameters": {"a": 1e999}}',
        '{"name": "f", "parameters": {}',
        '{"name": "f", "parameters": {}, "other": 1}',
        '{"name": "f", "parameters": {"a": ' + "[" * 3000 + "]" * 3000 + "}}",
        '{"name": "f", "parameters": {"a": ' + "1" * 5000 + "}}",
        "[]",
        "[1] A reference",
        "[link](https://example.org)",
        "[f(1)]",
        "[f(a=1), 2]",
        "[f(a=x)]",
        "[f(a=1, a=2)]",
        "[f(**{'a': 1})]",
        "[f(a=1)",
        "[f(a='\\",
        "[f(a=" + "(" * 500 + ")" * 500 + ")]",
        "[f(a=b'x')]",
        "[f(a=1j)]",
        "[__import__('os').system('x')]",
        "<function=f>{oops}</function>",
        "<function=f g>{}</function>",
        "<function=f",
        "<tool_call>hello</tool_call>",
        'Use {"name": "f", "parameters": {}} as a body.',
        "brave_search is a tool. brave_search.call(",
        "\x00\ud800\uffff {",
    ],
)
def test_an_answer_that_only_looks_like_a_call_is_text(text: str) -> None:
    for marks in (LLAMA3, LLAMA4, Marks()):
        for names in (None, ["f"]):
            assert only_text(text, marks, names)


def test_when_tools_are_known_only_they_are_called_in_ambiguous_notations() -> None:
    for text in ('{"name": "g", "parameters": {}}', "[print(a=1)]", '\n{"name": "g", "parameters": {}}'):
        assert only_text(text, names=["f"])
    assert calls("<function=g>{}</function>", names=["f"]) == [("g", {})]
    assert calls('<|python_tag|>{"name": "g", "parameters": {}}', names=["f"]) == [("g", {})]


def test_text_is_given_out_as_soon_as_it_is_certain() -> None:
    parser = StreamParser(LLAMA3, frozenset(["f"]))
    assert shown(parser.push("Hello")) == [("Hello", [])]
    assert shown(parser.push(" wor{ld} <")) == [(" wor{ld} ", [])]
    assert shown(parser.push("b>")) == [("<b>", [])]
    assert shown(parser.push("\n [f(a")) == [] and shown(parser.push("=1)]")) == [("", [("f", {"a": 1})])]
    assert shown(parser.push('{"x')) == [('{"x', [])] or shown(parser.finish()) == [('{"x', [])]


# Whatever arrives

PIECES = (
    *('{"name": "f", "parameters": {"a": [1, "}"]}}', "[f(a=1), g()]", '<function=f>{"a": 1}</function>', "<tool_call>", "</tool_call>"),
    *("<|python_tag|>", "<|python_start|>", "<|python_end|>", "{", "}", "[", "]", "(", ")", '"', "'", "\\", "\n", " ", ";", "text", "é🙂"),
    *('"name"', ":", ",", "f(", "brave_search.call(", 'query="x")', "<function=", "</function>", "=", "1", "print(1)"),
)
ANSWER = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join)


@settings(deadline=None, max_examples=200)
@given(text=ANSWER, cuts=st.lists(st.integers(0, 200), max_size=12), marks=st.sampled_from((LLAMA3, LLAMA4, Marks())), known=st.booleans())
@example(text="<|python_start|>x<|python_end|>\n{", cuts=[1], marks=LLAMA4, known=True)
def test_nothing_is_lost_and_cuts_change_nothing(text: str, cuts: list[int], marks: Marks, known: bool) -> None:
    names = ["f", "brave_search"] if known else None
    whole, cut = read(text, marks, names), read(text, marks, names, cuts)
    one_by_one = read(text, marks, names, range(len(text)))
    for pieces in (whole, cut, one_by_one):
        assert "".join(piece.raw for piece in pieces) == text
        assert all(piece.calls or piece.text == piece.raw or any(name in piece.raw for name in marks.names) for piece in pieces)
        assert "".join(piece.text for piece in pieces) == "".join(piece.text for piece in whole)
        assert [call for piece in pieces for call in piece.calls] == [call for piece in whole for call in piece.calls]


@ALL
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_ids_can_be_parsed_and_keep_their_text(chat_format: ChatFormat, data: st.DataObject) -> None:
    tokenizer = chat_format.tokenizer
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    message = chat_format.parse(ids)
    assert message.role is Role.ASSISTANT
    if not message.tool_calls:
        marks = chat_format.mark_ids
        assert message.text == tokenizer.decode([token for token in ids if token not in marks]) or set(ids) & marks


@ALL
def test_what_was_rendered_is_parsed_back(chat_format: ChatFormat) -> None:
    question = {"role": "user", "content": "Weather?"}
    answer = {"role": "assistant", "content": "Sunny, {25 °C}."}
    ids = chat_format.render([question, answer], add_generation_prompt=False)[len(chat_format.render([question])) :]
    assert chat_format.parse(ids).text.strip() == "Sunny, {25 °C}."
    if chat_format.name in ("chatml", "llama2", "llama3"):
        return
    call = {"function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2]}}}
    messages = [question, {"role": "assistant", "content": None, "tool_calls": [call]}]
    header = len(chat_format.render([question]))
    parsed = chat_format.parse(chat_format.render(messages, add_generation_prompt=False)[header:])
    assert [(made.name, made.arguments) for made in parsed.tool_calls] == [("get_weather", {"city": "Zürich", "days": [1, 2]})]
    assert parsed.content == "" and parsed.ends_turn is (chat_format.name != "meta-llama4")


def test_a_header_before_the_answer_is_no_part_of_it() -> None:
    for chat_format in (Llama3(BYTES, "llama3.1"), Llama4(BYTES), ChatML(BYTES)):
        prompt = chat_format.render([{"role": "user", "content": "a"}])
        without = chat_format.render([{"role": "user", "content": "a"}], add_generation_prompt=False)
        header = prompt[len(without) :]
        stop = min(chat_format.stop_ids)
        message = chat_format.parse([*header, *BYTES.encode("Hi", bos=False), stop])
        assert message.text == "Hi" and message.ends_turn is True


def test_calls_have_different_ids_and_are_equal_by_what_they_ask() -> None:
    first, second = (read("[f(a=1)]")[0].calls[0] for _ in range(2))
    assert first.id != second.id and first == second


@pytest.mark.parametrize(
    "text",
    [
        "\n[f(" * 40_000,
        "<function=" * 20_000,
        '{"name": ' * 20_000,
        " " * 200_000,
        "\n   " * 50_000,
        "[f(a='" + "x\n" * 100_000,
        '{"name": "' + "\\" * 200_000,
        "<|python_tag|>" + "x" * 200_000,
        "<|python_start|>x<|python_end|>" * 5_000,
    ],
)
def test_a_hostile_answer_costs_no_more_than_its_length(text: str) -> None:
    started = time.process_time()
    for marks in (LLAMA3, LLAMA4):
        pieces = read(text, marks, ["f"], range(0, len(text), 7))
        assert "".join(piece.raw for piece in pieces) == text
    assert time.process_time() - started < 20


def test_an_answer_of_many_false_beginnings_is_text_from_there_on() -> None:
    answer = "\n[f(1)]" * (FAILURES_MAX + 1) + "\n[f(a=1)]"
    assert only_text(answer, names=["f"])
    assert not only_text("\n[f(1)]" * (FAILURES_MAX - 2) + "\n[f(a=1)]", names=["f"])
