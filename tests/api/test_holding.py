"""Answers held to a language from Python: what `response_format` and `tool_choice` may be, on a real model whose answers begin with a
space of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import herd
from cli import chat_model
from cli.running import STORIES
from herd.api.holding import read_response_format, read_tool_choice
from herd.errors import UsageError
from herd.providers.base import ToolChoice, ToolUse
from herd.sampling.constraint import Constraint, ConstraintKind

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"], "additionalProperties": False}


class Pydantic:
    """As much of one of its models as is looked at."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return SCHEMA


@pytest.fixture(scope="module")
def stories() -> Iterator[herd.Model]:
    with herd.load(STORIES, backend="reference") as model:
        yield model


@pytest.mark.parametrize(
    "given",
    [SCHEMA, {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}, Pydantic,
     Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(SCHEMA))],
)  # fmt: skip
def test_a_schema_may_be_given_in_every_usual_way(stories: herd.Model, given: object) -> None:
    for seed in range(2):
        value = json.loads(stories.generate("Once", response_format=given, seed=seed, temperature=1.0, max_tokens=200).text)
        assert set(value) == {"n"} and value["n"] <= 99


def test_answers_begin_with_no_space_that_the_language_lacks(stories: herd.Model) -> None:
    for seed in range(3):
        out = stories.generate("Once upon a time", response_format={"type": "regex", "regex": "[a-z]{3,9}( [a-z]+)?"}, seed=seed)
        assert re.fullmatch("[a-z]{3,9}( [a-z]+)?", out.text), out.text
        out = stories.generate("Once", response_format={"type": "grammar", "grammar": 'start: "the " ("cat" | "dog") " sat"'}, seed=seed)
        assert out.text in ("the cat sat", "the dog sat")
        assert stories.generate("Once", response_format={"type": "json_object"}, seed=seed, max_tokens=5).text.startswith("{")


def test_forced_words_are_the_tokens_that_the_tokenizer_makes(stories: herd.Model) -> None:
    text = "the little girl was very happy"
    out = stories.generate("Once", response_format={"type": "grammar", "grammar": f'start: "{text}"'}, temperature=0.0)
    assert out.text == text
    canonical = stories.tokenizer.encode(text, bos=False)
    assert len(out.token_ids) <= len(canonical) + 2


def test_a_chat_is_held_too(tmp_path: Path) -> None:
    with herd.load(str(chat_model.write(tmp_path / "m")), backend="reference") as model:
        events = model.chat([{"role": "user", "content": "hi"}], response_format={"type": "regex", "regex": "(yes|no)"}, seed=1)
        assert "".join(event.text for event in events if event.type == "text") in ("yes", "no")
        with pytest.raises(UsageError, match="tools"):
            model.chat([{"role": "user", "content": "hi"}], tool_choice="required")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("json", "response_format is str"),
        ({"type": "json"}, "response_format.type is 'json'; expected one of"),
        ({"type": "json_shema"}, "did you mean 'json_schema'"),
        ({"type": "json_schema"}, "expected json_schema and type"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "has no schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strickt": True}}, "strickt"),
        ({"type": "json_object", "schema": {}}, "has schema, type"),
        ({"type": "regex", "regex": 3}, "response_format.regex is int"),
        ({"type": "object", "properties": {"a": {1, 2}}}, "cannot be written as JSON"),
        ({}, "expected one of"),
    ],
)
def test_other_formats_are_refused_by_name(given: object, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_response_format(given)
    assert caught.value.param == "response_format"


def test_no_format_and_that_of_text_are_free() -> None:
    assert read_response_format(None) is None and read_response_format({"type": "text"}) is None


def test_the_choices_of_tools() -> None:
    assert read_tool_choice("auto", True) == ToolChoice()
    assert read_tool_choice("none", True) == ToolChoice(ToolUse.NONE)
    assert read_tool_choice("required", False) == ToolChoice(ToolUse.REQUIRED, None, False)
    assert read_tool_choice({"type": "function", "function": {"name": "f"}}, True) == ToolChoice(ToolUse.NAMED, "f")
    for wrong in ("any", None, {"type": "function"}, {"function": {"name": "f"}}, {"type": "function", "function": {"name": 3}}, 1):
        with pytest.raises(UsageError, match="tool_choice is") as caught:
            read_tool_choice(wrong, True)
        assert caught.value.param == "tool_choice"
