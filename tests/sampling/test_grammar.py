"""Answers held to a language: whatever is drawn parses, and what is hostile is refused elsewhere than here.

The vocabulary is made of bytes and a few longer pieces, so that one text can be spelled in many ways, and control tokens."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import UsageError
from herd.sampling.compiling import Compiler
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.sampling.grammar import CACHE_BYTES, GrammarMatcher, Grammars, Spelling
from herd.sampling.matching import is_allowed
from spelled import EMPTY, STOP, TAG, TOKENS, encode, lark, make_grammars, regex, schema, text_of


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = make_grammars()
    yield made
    made.close()


def allowed_ids(mask: np.ndarray) -> list[int]:
    return [token for token in range(len(TOKENS)) if is_allowed(mask, token)]


def drawn(matcher: GrammarMatcher, seed: int, most: int = 3000) -> list[int]:
    """An answer of somebody without taste."""
    chance, ids = random.Random(seed), list[int]()
    while not matcher.is_done and len(ids) < most:
        (mask,) = matcher.allowed()
        choices = allowed_ids(mask)
        token = STOP if STOP in choices and chance.random() < 0.3 else chance.choice(choices)
        ids.append(token)
        if token == STOP:
            break
        matcher.advance(token)
        assert matcher.problem is None
    return ids


SCHEMAS: list[tuple[Any, Any]] = [
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
     lambda v: set(v) == {"a"} and isinstance(v["a"], int)),
    ({"enum": ["x", 1, None, True, [1, 2], {"k": "v"}]}, lambda v: v in ["x", 1, None, True, [1, 2], {"k": "v"}]),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
     lambda v: 2 <= len(v) <= 3 and all(isinstance(x, bool) for x in v)),
    ({"type": "string", "minLength": 2, "maxLength": 5}, lambda v: 2 <= len(v) <= 5),
    ({"type": "integer", "minimum": -3, "maximum": 12}, lambda v: -3 <= v <= 12),
    ({"type": "string", "pattern": "^[a-c]+$", "maxLength": 9}, lambda v: re.fullmatch("[a-c]+", v) is not None),
    ({"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 1}}},
     lambda v: isinstance(v, list)),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "holds"), SCHEMAS)
def test_whatever_is_drawn_is_what_the_schema_says(grammars: Grammars, wanted: Any, holds: Any) -> None:
    for seed in range(15):
        ids = drawn(grammars.matcher(schema(wanted), {STOP}), seed)
        assert holds(json.loads(text_of(ids))), text_of(ids)


def test_any_json_object_is_one(grammars: Grammars) -> None:
    whole = 0
    for seed in range(20):
        matcher = grammars.matcher(Constraint(ConstraintKind.JSON_OBJECT), {STOP})
        ids = drawn(matcher, seed)
        if ids[-1] == STOP or matcher.is_done:
            whole += 1
            assert isinstance(json.loads(text_of(ids)), dict)
    assert whole > 10


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-z]+", r"^a|b/c$", "x\ny", r"(ab)*", r"\$\d\$", r"a\$", "é{2,4}"])
def test_whatever_is_drawn_matches_the_regular_expression(grammars: Grammars, pattern: str) -> None:
    for seed in range(10):
        found = text_of(drawn(grammars.matcher(regex(pattern), {STOP}), seed))
        assert re.fullmatch(f"(?:{pattern})", found), found


@settings(max_examples=40, deadline=None)
@given(
    words=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8), min_size=1, max_size=4)
)
def test_texts_of_any_characters_can_be_demanded(grammars: Grammars, words: list[str]) -> None:
    for seed in range(2):
        ids = drawn(grammars.matcher(schema({"enum": words}), {STOP}), seed)
        assert json.loads(text_of(ids)) in words


def test_forced_text_is_spelled_as_the_tokenizer_spells_it(grammars: Grammars) -> None:
    matcher = grammars.matcher(lark('start: "{\\"name\\": " ("true" | "null")'), {STOP})
    expected = encode('{"name": ')
    assert matcher.forced() == expected[: len(matcher.forced())] and len(matcher.forced()) > 1
    for token in list(matcher.forced()):
        (mask,) = matcher.allowed()
        assert allowed_ids(mask) == [token]
        matcher.advance(token)
    assert matcher.forced() == [] or matcher.problem is None


def test_what_is_forced_does_not_depend_on_how_often_it_is_asked(grammars: Grammars) -> None:
    wanted = lark('start: "{\\"name\\": abcabc" ("12" | "null") ", name"')
    answers = []
    for asks in (1, 3):
        matcher, ids = grammars.matcher(wanted, {STOP}), list[int]()
        while not matcher.is_done:
            for _ in range(asks):
                mask = matcher.allowed(ids[-1:])[0]
            token = allowed_ids(mask)[-1]
            ids.append(token)
            matcher.advance(token)
        answers.append(ids)
    assert answers[0] == answers[1]


def test_masks_after_drafts_are_those_of_the_text_that_has_them(grammars: Grammars) -> None:
    wanted = schema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    drafted = encode('{"name": "abc')
    matcher, alone = grammars.matcher(wanted, {STOP}), grammars.matcher(wanted, {STOP})
    masks = matcher.allowed(drafted)
    assert len(masks) == len(drafted) + 1
    for token, mask in zip([*drafted, None], masks, strict=True):
        assert allowed_ids(alone.allowed()[0]) == allowed_ids(mask)
        if token is not None:
            alone.advance(token)
    assert len(matcher.allowed(encode('{"nine'))) < len(encode('{"nine')) + 1
    assert [m.tolist() for m in matcher.allowed(drafted)] == [m.tolist() for m in masks], "asking changes nothing"


def test_an_answer_ends_only_where_the_language_lets_it(grammars: Grammars) -> None:
    matcher = grammars.matcher(regex("(ab)+"), {STOP, TAG})
    for token, ends in zip(encode("abab") + [None], [False, True, True], strict=False):  # noqa: RUF005
        (mask,) = matcher.allowed()
        assert (STOP in allowed_ids(mask)) == (TAG in allowed_ids(mask)) == ends
        if token is not None:
            matcher.advance(token)
    assert not matcher.is_done, "another one may follow"
    matcher = grammars.matcher(regex("ab"), {STOP})
    matcher.advance(encode("ab")[0])
    assert matcher.is_done


def test_a_token_of_text_that_ends_answers_ends_only_whole_ones(grammars: Grammars) -> None:
    matcher = grammars.matcher(regex("[ab]{2}"), {ord("a"), STOP})
    assert ord("a") not in allowed_ids(matcher.allowed()[0]) and ord("b") in allowed_ids(matcher.allowed()[0])


def test_control_tokens_come_only_where_a_grammar_names_them(grammars: Grammars) -> None:
    assert TAG not in allowed_ids(grammars.matcher(regex("(?s:.)+"), {STOP}).allowed()[0])
    assert EMPTY not in allowed_ids(grammars.matcher(regex("(?s:.)+"), {STOP}).allowed()[0])
    matcher = grammars.matcher(lark(f'start: <[{TAG}]> "ab"'), {STOP})
    assert allowed_ids(matcher.allowed()[0]) == [TAG]


def test_answers_that_begin_with_a_space_of_their_own_are_held_after_it() -> None:
    made = Grammars(lambda: Spelling(TOKENS, {STOP, TAG}, encode, begins_with_space=True))
    try:
        for wanted in (regex("ab"), lark('start: "ab"'), schema({"const": "ab"})):
            matcher = made.matcher(wanted, {STOP})
            assert allowed_ids(matcher.allowed()[0]) == [ord(" ")]
    finally:
        made.close()


HOSTILE = {
    "look-behind": regex("(?<=x)*"),
    "60,000 parentheses": lark("start: " + "(" * 60_000 + '"a"' + ")" * 60_000),
    "60,000 open ones": regex("(" * 60_000),
    "an undefined rule": lark("start: foo"),
    "a rule that never ends": lark('start: a\na: a "x"'),
    "no rule": lark(""),
    "an empty language": regex(""),
    "100,000 values": schema({"enum": [f"value {i}" for i in range(100_000)]}),
    "10,000 deep": Constraint(ConstraintKind.JSON_SCHEMA, '{"items":' * 10_000 + "{}" + "}" * 10_000),
    "300 deep": Constraint(ConstraintKind.JSON_SCHEMA, '{"items":' * 300 + "{}" + "}" * 300),
    "a reference to itself": schema({"$ref": "#"}),
    "references in a circle": schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    "a reference to nothing": schema({"$ref": "#/$defs/a"}),
    "a reference elsewhere": schema({"$ref": "https://example.com/schema"}),
    "nothing satisfies it": schema({"type": "integer", "minimum": 3, "maximum": 2}),
    "nothing satisfies a part": schema({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}),
    "false": schema(False),
    "a keyword that grammars lack": schema({"type": "array", "uniqueItems": True}),
    "a list": Constraint(ConstraintKind.JSON_SCHEMA, "[]"),
    "no JSON": Constraint(ConstraintKind.JSON_SCHEMA, "{"),
    "NaN": Constraint(ConstraintKind.JSON_SCHEMA, '{"const": NaN}'),
    "options of the compiler": schema({"x-guidance": {"lenient": True}}),
    "two million characters": regex("a" * 2_000_000),
    "20,000 properties": schema({"properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_or_damaged_is_refused_by_name(grammars: Grammars, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        grammars.matcher(HOSTILE[name], {STOP}, param="response_format")
    assert caught.value.param == "response_format" and len(str(caught.value)) < 400
    assert not re.search(r"\.rs|lark|/home|/usr|panicked", str(caught.value), re.IGNORECASE), str(caught.value)


@pytest.mark.parametrize("pattern", ["(a*)*b", r"\p{L}{1,99999}", "a{0,10000}", "(a|b)*a(a|b){30}", "(.*a){30}"])
def test_what_only_looks_hostile_is_held_to(grammars: Grammars, pattern: str) -> None:
    begin = time.perf_counter()
    matcher = grammars.matcher(regex(pattern), {STOP})
    assert matcher.allowed() and time.perf_counter() - begin < 5.0


class _Hanging(Compiler):
    """Whose process is stopped before it gets the grammar of abc."""

    def _try(self, grammar: str) -> Any:
        if "abc/" in grammar:
            os.kill(self._ready()._process.pid, signal.SIGSTOP)
        return super()._try(grammar)


def test_a_process_that_does_not_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.sampling.compiling.PATIENCE_S", 0.3)
    made = make_grammars(compiler=lambda *given: _Hanging(*given, seconds=0.2))
    try:
        made.matcher(regex("ab"), {STOP})
        with pytest.raises(UsageError, match=r"more than 0\.2 s"):
            made.matcher(regex("abc"), {STOP})
        made.matcher(regex("abcd"), {STOP})
        with pytest.raises(UsageError, match=r"more than 0\.2 s"):
            made.matcher(regex("abc"), {STOP})
    finally:
        made.close()


def test_a_process_that_dies_takes_only_its_grammar_with_it() -> None:
    class Dying(Compiler):
        def _try(self, grammar: str) -> Any:
            if self._child is not None and "xyz" in grammar:
                os.kill(self._child._process.pid, signal.SIGKILL)
            return super()._try(grammar)

    made = make_grammars(compiler=Dying)
    try:
        made.matcher(regex("ab"), {STOP})
        with pytest.raises(UsageError, match="cannot be held to"):
            made.matcher(regex("xyz"), {STOP})
        made.matcher(regex("abc"), {STOP})
    finally:
        made.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process' memory so")
def test_a_grammar_that_takes_too_much_memory_is_refused() -> None:
    made = make_grammars(compiler=lambda *given: Compiler(*given, memory_bytes=1 << 22))
    try:
        made.matcher(regex("ab"), {STOP})
        with pytest.raises(UsageError, match="too much memory"):
            made.matcher(schema({"enum": [f"value {i}" for i in range(40_000)]}), {STOP})
        made.matcher(regex("abc"), {STOP})
    finally:
        made.close()


def test_no_process_is_left_behind() -> None:
    made = make_grammars()
    made.matcher(regex("ab"), {STOP})
    assert made._vocabulary is not None
    compiler = made._vocabulary.compiler
    assert compiler._child is not None
    process = compiler._child._process
    del compiler, made
    assert process.poll() is not None


def test_the_compiled_grammars_have_a_largest_size(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.sampling.grammar.SMALLEST_BYTES", CACHE_BYTES // 8)
    for count in range(1, 20):
        grammars.matcher(regex(f"b{{{count}}}"), {STOP})
        assert grammars.num_bytes <= CACHE_BYTES
    assert len(grammars._compiled) <= 8


def test_a_state_that_no_token_satisfies_is_an_error_that_says_so() -> None:
    """A vocabulary without digits cannot write a number."""
    tokens = [b"a", b"b", b"{", b"}", b"<stop>"]
    made = Grammars(lambda: Spelling(tokens, {4}, lambda text: [b"ab{}".index(byte) for byte in text.encode()]))
    try:
        matcher = made.matcher(lark('start: "a" /[b0-9]/ "7"?'), {4})
        matcher.advance(0)
        assert matcher.allowed()
        matcher = made.matcher(lark('start: "a" ("b" "7" | "}")'), {4})
        matcher.advance(0)
        matcher.advance(1)
        assert matcher.allowed() == [] or matcher.problem is not None
        assert isinstance(matcher.problem, UsageError) and "cannot be held to the grammar any further" in str(matcher.problem)
    finally:
        made.close()
