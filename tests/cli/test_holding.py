"""--json-schema, --regex and --grammar of `herd run` and `herd chat`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.running import REFERENCE, STORIES, invoke

RUN = ("run", STORIES, "Once upon a time", *REFERENCE, "--seed", "1", "-n", "200")


def test_an_answer_is_held_to_a_schema_a_pattern_or_a_grammar(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "answer.lark"
    schema.write_text(
        json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False})
    )
    grammar.write_text('start: "one" | "two"')
    assert isinstance(json.loads(invoke(*RUN, "--json-schema", str(schema)).output)["ok"], bool)
    assert invoke(*RUN, "--regex", "(yes|no)").output.strip() in ("yes", "no")
    assert invoke(*RUN, "--grammar", str(grammar)).output.strip() in ("one", "two")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--regex", "("), "the regular expression cannot be held to"),
        (("--regex", "a", "--grammar", "b"), "--regex and --grammar both say"),
        (("--json-schema", "/nowhere/schema.json"), "--json-schema: /nowhere/schema.json cannot be read: No such file"),
        (("--json-schema", __file__), "--json-schema: the file is no JSON"),
    ],
)
def test_what_answers_cannot_be_held_to_is_refused(words: tuple[str, ...], message: str) -> None:
    result = invoke(*RUN, *words)
    assert result.exit_code == 2 and message in result.output
