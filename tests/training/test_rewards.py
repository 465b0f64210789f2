"""What answers are worth."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from herd.data.reading import Place
from herd.data.samples import Task
from herd.errors import FileProblem, UsageError
from herd.text.messages import Message, Role
from herd.training.settings.rewards import RewardSettings
from herd.training.signals.rewards import Answer, Asked, Rewards, final_answer, fits_schema, number_of, passes_tests, reward_of, same_number
from herd.training.signals.schema_check import fits


def task(**checks: Any) -> Task:
    return Task(Place(Path("tasks.jsonl"), 3), (Message(Role.USER, "What is it?"),), checks, {"level": 2})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,000", Fraction(1000)),
        ("1000.0", Fraction(1000)),
        ("1e3", Fraction(1000)),
        ("$1,234.50.", Fraction(2469, 2)),
        ("-3", Fraction(-3)),
        ("\u22123", Fraction(-3)),
        ("50%", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("\\frac{1}{2}", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("12 apples", Fraction(12)),
        ("none", None),
        ("3 or 4", None),
        ("1/0", None),
        ("1e999999999", None),
        ("", None),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, number: Fraction | None) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So 3 + 4 makes 7.", "7"),
        ("First 12, then\n#### 1,200\nDone 5", "1,200"),
        ("Thus \\boxed{\\frac{1}{2}} of 9", "\\frac{1}{2}"),
        ("I do not know", ""),
        ("It is 3.5.", "3.5"),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_equal_numbers_are_equal_however_they_are_written() -> None:
    assert same_number("1,000", "1000.00") and same_number("0.1", "1/10") and same_number("Paris ", "paris")
    assert not same_number("", "7") and not same_number("7", "") and not same_number("", "") and not same_number("0.333", "1/3")


def test_rewards_of_each_kind() -> None:
    number = reward_of(RewardSettings(kind="number"))
    assert number(task(answer=7), Answer("3 + 4 = 7")) == 1 and number(task(answer="7"), Answer("8")) == 0
    text = reward_of(RewardSettings(kind="text", pattern=r"Answer: (\w+)"))
    assert text(task(answer="yes"), Answer("Well. Answer: YES!")) == 1 and text(task(answer="yes"), Answer("yes")) == 0
    words = reward_of(RewardSettings(kind="length", least=2, most=4))
    assert [words(task(), Answer("a " * count)) for count in (0, 1, 2, 4, 8)] == [0, 0.5, 1, 1, 0.5]
    shouted = reward_of(RewardSettings(kind="pattern", pattern="^[A-Z ]+$"))
    assert shouted(task(), Answer("OH NO")) == 1 and shouted(task(), Answer("Oh no")) == 0
    schema = reward_of(RewardSettings(kind="schema"))
    assert schema(task(schema={"type": "object", "required": ["a"]}), Answer('{"a": 1}')) == 1


def test_tests_of_code_run_in_the_sandbox() -> None:
    answer = "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nIt doubles."
    assert passes_tests(answer, "assert double(3) == 6", required=())
    assert not passes_tests(answer, "assert double(3) == 7", required=())


def test_rewards_are_added_up_by_their_weights() -> None:
    both = Rewards([RewardSettings(kind="number", weight=2.0), RewardSettings(kind="length", most=1, weight=0.5, unit="tokens")])
    assert both([(task(answer="4"), Answer("4", num_tokens=2)), (task(answer="5"), Answer("4", num_tokens=1))]) == [2.25, 0.5]
    assert both([]) == []


def test_a_model_judges_all_answers_together() -> None:
    seen: list[int] = []

    def judge(asked: Asked) -> list[float]:
        seen.append(len(asked))
        return [float(answer.num_tokens) for _, answer in asked]

    settings = [RewardSettings(kind="model", model="runs/judge", weight=2.0), RewardSettings(kind="number", weight=-1.0)]
    answers = [(task(answer="4"), Answer("4", num_tokens=count)) for count in (1, 2, 3)]
    assert Rewards(settings, {"runs/judge": judge})(answers) == [1.0, 3.0, 5.0] and seen == [3]


def test_a_function_of_the_users_is_called_with_the_answer_and_the_record(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def near(answer, task):\n    return task['level'] * len(answer) + (task['prompt'] == 'What is it?')\nbad = 3\n")
    assert reward_of(RewardSettings(kind="function", function=f"{file}:near"))(task(), Answer("ab")) == 5
    for place, complaint in ((f"{file}:far", "no function 'far'"), (f"{file}:bad", "no function 'bad'"), ("gone.py:x", "no Python file")):
        with pytest.raises(FileProblem, match=complaint):
            reward_of(RewardSettings(kind="function", function=place))
    file.write_text("def near(answer, task):\n    return float('nan')\nraise_now = 1\n")
    with pytest.raises(UsageError, match=r"tasks\.jsonl.*finite number"):
        reward_of(RewardSettings(kind="function", function=f"{file}:near"))(task(), Answer("ab"))
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(FileProblem, match="cannot be loaded"):
        reward_of(RewardSettings(kind="function", function=f"{file}:near"))


def test_wrong_settings_are_refused() -> None:
    for given, complaint in (
        ({"kind": "function", "function": "near"}, "path/to/file.py:name"),
        ({"kind": "pattern"}, "needs a pattern"),
        ({"kind": "model"}, "kind model alone"),
        ({"kind": "number", "model": "runs/judge"}, "kind model alone"),
        ({"kind": "length", "least": 5, "most": 2}, "least <= most"),
        ({"kind": "tests", "required": ("netwrk",)}, "no guard 'netwrk'"),
        ({"kind": "number", "weight": float("nan")}, "must be finite"),
    ):
        with pytest.raises(UsageError, match=complaint):
            RewardSettings(**given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a regular expression"):
        reward_of(RewardSettings(kind="pattern", pattern="("))
    with pytest.raises(UsageError, match=r"tasks\.jsonl.*no 'answer'"):
        reward_of(RewardSettings(kind="number"))(task(tests="x"), Answer("7"))
    with pytest.raises(UsageError, match="no reward"):
        Rewards([])


PERSON = {
    "$defs": {"name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"}},
    "type": "object",
    "properties": {"name": {"$ref": "#/$defs/name"}, "age": {"type": "integer", "minimum": 0}, "tags": {"items": {"enum": ["a", "b"]}}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ('{"name": "Ada", "age": 36, "tags": ["a"]}', True),
        ('```json\n{"name": "Ada"}\n```', True),
        ('{"name": "Ada", "age": 36.0}', True),
        ('{"name": "Ada", "age": true}', False),
        ('{"name": "ada"}', False),
        ('{"age": 3}', False),
        ('{"name": "Ada", "tags": ["c"]}', False),
        ('{"name": "Ada", "more": 1}', False),
        ('{"name": "Ada", "name": "Bob"}', False),
        ('Here: {"name": "Ada"}', False),
        ('{"name": NaN}', False),
        ("", False),
    ],
)
def test_json_fits_a_schema_or_does_not(text: str, is_right: bool) -> None:
    assert fits_schema(text, PERSON) is is_right


@pytest.mark.parametrize(
    ("value", "schema", "is_right"),
    [
        (1, True, True),
        (1, False, False),
        (1, {"const": 1.0}, True),
        (True, {"enum": [1]}, False),
        ([1, True], {"uniqueItems": True}, True),
        ([1, 1.0], {"uniqueItems": True}, False),
        (["x", 2, 3], {"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, True),
        (["x", "y"], {"prefixItems": [{"type": "string"}], "items": False}, False),
        ({"a_x": 1, "b": 2}, {"patternProperties": {"^a_": {"type": "integer"}}, "additionalProperties": False}, False),
        (3, {"oneOf": [{"type": "integer"}, {"minimum": 2}]}, False),
        (3, {"anyOf": [{"type": "string"}, {"minimum": 2}]}, True),
        (3, {"not": {"type": "integer"}}, False),
        (3, {"if": {"type": "integer"}, "then": {"maximum": 2}}, False),
        (0.3, {"multipleOf": 0.1}, True),
        ({"a": 1}, {"minProperties": 2}, False),
        ([1, "x"], {"contains": {"type": "string"}}, True),
        (5, {"exclusiveMaximum": 5}, False),
    ],
)
def test_keywords_of_schemas(value: Any, schema: Any, is_right: bool) -> None:
    assert fits(value, schema) is is_right


def test_schemas_that_cannot_be_checked_are_refused_by_keyword() -> None:
    for schema, complaint in (
        ({"minimun": 3}, "'minimun'.*did you mean 'minimum'"),
        ({"$ref": "http://example.org/x"}, "only parts of the same schema"),
        ({"$ref": "#/$defs/x"}, "not in it"),
        ({"$ref": "#"}, "without an end"),
        ({"type": "str"}, "type 'str'"),
        (3, "expected an object"),
    ):
        with pytest.raises(UsageError, match=complaint):
            fits("a", schema)


def test_no_answer_ends_a_run_whatever_numbers_and_depths_are_in_it() -> None:
    """What cannot be right is worth nothing."""
    nested = {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
    assert fits_schema("[" * 60 + "]" * 60, nested) and not fits_schema("[" * 70 + "]" * 70, nested)
    assert not fits_schema("[" * 100_000 + "]" * 100_000, nested)
    assert fits_schema("1" * 400, {"type": "integer"}) and not fits_schema("1e400", {"type": "integer"})
    assert fits_schema("1" * 400, {"multipleOf": 1}) and not fits_schema("1e400", {"multipleOf": 2})
    assert fits_schema("0.3", {"multipleOf": 0.1}) and not fits_schema("0.35", {"multipleOf": 0.1})
    assert not fits_schema("1" * 5000, {"type": "integer"})
    for schema in ({"$ref": "#"}, {"multipleOf": 0}):
        with pytest.raises(UsageError):
            fits_schema("1", schema)


@pytest.mark.parametrize("text", ["1" + " " * 200_000, " " * 200_000 + "x", "1 / " * 50_000, "-" * 200_000, "1," * 100_000])
def test_a_long_answer_is_read_in_proportion_to_its_length(text: str) -> None:
    began = time.process_time()
    final_answer(text)
    number_of(text)
    assert time.process_time() - began < 2
