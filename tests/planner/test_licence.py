"""`check` beyond the table of cases: questions, names, merges, and what a ruling carries."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.errors import UsageError
from herd.family.catalogue import find, releases
from herd.planner.licence import USERS_LIMIT, VERDICTS, check
from herd.planner.licence_answers import FIELDS, QUESTIONS, Answers, next_question
from herd.planner.licence_duties import meets_prefix
from herd.planner.licence_report import ruling_data

CHOICES = {question.field: st.sampled_from(question.choices) for question in QUESTIONS if question.choices}
USERS = st.one_of(st.just("unknown"), st.integers(0, 2 * USERS_LIMIT))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(releases())), st.fixed_dictionaries({}, optional=CHOICES | {"users_per_month": USERS, "model_name": st.text()}))
def test_any_answers_get_a_ruling_with_its_reasons(name: str, answers: dict[str, Any]) -> None:
    ruling = check(name, answers)
    assert ruling.verdict in VERDICTS and ruling.findings
    if ruling.verdict not in ("allowed", "allowed-with-duties"):
        assert any(found.verdict == ruling.verdict for found in ruling.findings) and not ruling.duties
    assert bool(ruling.fields) == (ruling.verdict == "contradiction")
    assert ruling_data(ruling)["verdict"] == ruling.verdict


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(releases())), st.data())
def test_the_questions_come_to_an_end_and_none_is_asked_twice(name: str, data: st.DataObject) -> None:
    release, answers = find(name), {}
    for _ in range(len(QUESTIONS) + 1):
        question = next_question(answers, release, USERS_LIMIT)
        if question is None:
            break
        assert question.field not in answers
        free = "5" if "users" in question.field else ""
        answers[question.field] = data.draw(st.sampled_from(question.choices) if question.choices else st.just(free))
    assert next_question(answers, release, USERS_LIMIT) is None
    assert check(name, {key: value for key, value in answers.items() if value != ""}).verdict in VERDICTS


@pytest.mark.parametrize(
    ("prefix", "name", "meets", "doubt"),
    [
        ("Llama", "Llama-Quokka", True, ""),
        ("Llama", "", True, ""),
        ("Llama", "llama-quokka", False, "prefix-letter-case"),
        ("Llama", "Quokka-Llama", False, ""),
        ("Llama 3", "Llama 3 Quokka", True, ""),
        ("Llama 3", "Llama_3_Quokka", True, "prefix-spelling"),
        ("Llama 3", "Llama3Quokka", True, "prefix-spelling"),
        ("Llama 3", "llama-3-quokka", False, "prefix-letter-case"),
        ("Llama 3", "Llama Quokka", False, ""),
    ],
)
def test_names_begin_as_the_licence_wants(prefix: str, name: str, meets: bool, doubt: str) -> None:
    assert meets_prefix(prefix, name) == (meets, doubt)


def test_the_line_for_the_notice_file_is_the_licences_own() -> None:
    ruling = check("llama-3.1-8b", {"use": "product"})
    assert ruling.notices == (
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.",
    )
    (llama_2,) = check("llama-2-7b", {"use": "product"}).notices
    assert llama_2 == "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved."
    assert check("llama-3.1-8b", {"use": "internal"}).notices == ()


def test_a_merge_must_satisfy_every_licence() -> None:
    ruling = check(
        "llama-3.1-8b", {"use": "derivative-model", "distributes": "yes", "change": "merged", "also_derived_from": "llama-3.2-1b"}
    )
    assert ruling.verdict == "allowed-with-duties" and ruling.other_licences == ("llama3.2",)
    assert len(ruling.notices) == 2 and ruling.badges == ("Built with Llama",)
    eu = {"use": "derivative-model", "change": "merged", "region": "eu", "also_derived_from": ["llama-4-scout"]}
    assert check("llama-3.1-8b", eu).verdict == "not-granted"


def test_users_are_written_as_people_write_them() -> None:
    assert check("llama-3.1-8b", {"users_per_month": "701M"}).verdict == "separate-licence-needed"
    assert check("llama-3.1-8b", {"users_per_month": "Unknown"}).verdict == "ask-a-lawyer"


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"use": "servce"}, "did you mean 'service'"),
        ({"usage": "service"}, "no question 'usage'"),
        ({"users_per_month": -1}, "a number of people"),
        ({"users_per_month": "lots"}, "users_per_month is 'lots'"),
        ({"also_derived_from": "llama-9"}, "No model is known as 'llama-9'"),
    ],
)
def test_what_is_no_answer_is_refused(answers: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check("llama-3.1-8b", answers)


def test_answers_may_be_written_with_spaces_and_capitals() -> None:
    assert Answers({"use": "Derivative_Model", "region": "EEA or Switzerland"})["use"] == "derivative-model"
    assert all(question.asks for question in FIELDS.values())


def test_what_is_asked_depends_on_what_was_said() -> None:
    def asked(name: str, **answers: str) -> set[str]:
        given: dict[str, Any] = dict(answers)
        while (question := next_question(given, find(name), USERS_LIMIT)) is not None:
            given[question.field] = question.default or ("1" if "users" in question.field else "no")
        return set(given)

    assert "commercial" in asked("llama-1-7b") and "users_per_month" not in asked("llama-1-7b")
    assert "separate_licence" in asked("llama-3.1-8b", users_per_month="800M") and "separate_licence" not in asked("llama-3.1-8b")
    assert "vision_removed" in asked("llama-4-scout", region="eu") and "vision_removed" not in asked("llama-4-scout")
    assert "improves" in asked("llama-2-7b", use="train-other-model", trains_other_model_with="outputs")
    assert "users_per_month" not in asked("smollm2-135m")
