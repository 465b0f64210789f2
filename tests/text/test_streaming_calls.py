"""Calls that are told while they arrive: their pieces spell what the calls have, however the answer is cut; and nothing else changes."""

from __future__ import annotations

import functools
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.providers.constraining import spelling
from herd.sampling.grammar import Grammars
from herd.text.formats.begun import Head
from herd.text.formats.parsing import Marks, Piece, StreamParser
from text.test_call_grammars import ALL, BYTES, FORMATS, TOOLS, drawn

HEADS = {'{"name": "f", "parameters": ': Head("f", "}"), "<function=g>": Head("g", "</function>")}
NAMES = frozenset({"f", "g"})


@functools.cache
def answers(name: str) -> list[str]:
    """What is drawn from the grammar of a format, as its parser gets it."""
    chat_format, _ = FORMATS[name]
    made = Grammars(lambda: spelling(BYTES, BYTES.vocab_size))
    try:
        texts = []
        for seed in range(15):
            stream = BYTES.stream(keep=chat_format.mark_ids)
            ids = drawn(made, chat_format.call_grammar(TOOLS), chat_format.stop_ids, seed)
            texts.append("".join(map(stream.push, ids)) + stream.finish())
        return texts
    finally:
        made.close()


def cut(text: str, seed: int) -> list[str]:
    chance = random.Random(seed)
    places = sorted(chance.randrange(len(text) + 1) for _ in range(chance.choice([0, 3, 40])))
    return [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]


def read(parser: StreamParser, pieces: Sequence[str]) -> list[Piece]:
    return [*(found for piece in pieces for found in parser.push(piece)), *parser.finish()]


def called(found: Sequence[Piece]) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, dict(call.arguments)) for piece in found for call in piece.calls]


def spelled(found: Sequence[Piece]) -> dict[str, str]:
    """The text of the arguments by call."""
    texts: dict[str, str] = defaultdict(str)
    for piece in found:
        if piece.begun is not None:
            texts[piece.begun.call_id] += piece.begun.arguments
    return dict(texts)


@ALL
def test_pieces_spell_the_arguments_of_the_call_that_follows_them(name: str) -> None:
    chat_format, _ = FORMATS[name]
    heads = chat_format.call_heads(TOOLS)
    streamed = 0
    for seed, text in enumerate(answers(name)):
        whole = read(StreamParser(chat_format.marks, None), [text])
        found = read(StreamParser(chat_format.marks, None, heads=heads), cut(text, seed))
        assert called(found) == called(whole) and called(found)
        assert "".join(piece.raw for piece in found) == text
        texts = spelled(found)
        calls = {call.id: call for piece in found for call in piece.calls}
        assert set(texts) <= set(calls)
        for call_id, arguments in texts.items():
            assert json.loads(arguments) == calls[call_id].arguments
        streamed += len(texts)
    assert streamed > 0 or not any(head.is_json for head in heads.values())


def test_arguments_are_told_as_they_arrive() -> None:
    parser = StreamParser(Marks(), NAMES, heads=HEADS)
    assert parser.push('{"name": "f", "para') == []
    assert [piece.begun.arguments for piece in parser.push('meters": {"a": [1, "}') if piece.begun] == ['{"a": [1, "}']
    assert [piece.begun.arguments for piece in parser.push('"') if piece.begun] == ['"']
    (piece,) = parser.push("]}")
    assert piece.begun is not None and piece.begun.arguments == "]}" and piece.begun.name == "f"
    (piece,) = parser.push("}")
    assert [call.arguments for call in piece.calls] == [{"a": [1, "}"]}]
    assert parser.finish() == []


def test_a_call_that_is_cut_off_is_no_call_and_no_text() -> None:
    parser = StreamParser(Marks(), NAMES, heads=HEADS)
    found = read(parser, ['{"name": "f", "parameters": {"a": "b'])
    assert spelled(found).popitem()[1] == '{"a": "b'
    assert called(found) == [] and "".join(piece.text for piece in found) == ""
    assert "".join(piece.raw for piece in found) == '{"name": "f", "parameters": {"a": "b'


def test_a_call_whose_last_bracket_alone_is_missing_is_complete() -> None:
    found = read(StreamParser(Marks(), NAMES, heads=HEADS), ['<function=g>{"a": 1}'])
    assert called(found) == [("g", {"a": 1})]


@pytest.mark.parametrize("before", ["Look:\n", "\n", ' {"name": "f", "arguments": {"a": 1}}', "[1]\n"])
def test_after_anything_else_calls_come_whole(before: str) -> None:
    """Only an answer that begins as a call is held to be one."""
    found = read(StreamParser(Marks(), NAMES, heads=HEADS), [before, '{"name": "f", ', '"parameters": {"a": 1}}'])
    assert called(found)[-1] == ("f", {"a": 1}) and spelled(found) == {}


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(
            ['{"name": "f", "parameters": ', "<function=g>", '{"a": ', '"}"', '\\"', "}", "}}", "</function>", "{", "[1]", " x", "\n"]
        )
        | st.text(max_size=3),
        max_size=9,
    ).map("".join),
    cuts=st.lists(st.integers(0, 120), max_size=5),
)
def test_any_answer_is_read_alike_however_it_is_cut_and_nothing_is_lost(text: str, cuts: list[int]) -> None:
    places = sorted(min(place, len(text)) for place in cuts)
    pieces = [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]
    whole, found = (read(StreamParser(Marks(), NAMES, heads=HEADS), given_pieces) for given_pieces in ([text], pieces))
    assert "".join(piece.raw for piece in found) == text
    assert called(found) == called(whole)
    assert "".join(piece.text for piece in found) == "".join(piece.text for piece in whole)
    assert list(spelled(found).values()) == list(spelled(whole).values())
    calls = {call.id: call.arguments for piece in found for call in piece.calls}
    for call_id, arguments in spelled(found).items():
        assert call_id not in calls or json.loads(arguments) == calls[call_id]
