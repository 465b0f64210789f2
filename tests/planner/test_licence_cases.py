"""Every case of `licence_cases.toml`, which was written from the licence texts by a reader who had not seen the checker."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from herd.planner.licence import DISCLAIMER, VERDICTS, check, licence_of
from herd.planner.licence_answers import DEFAULT_USERS, FIELDS
from herd.planner.licence_data import licence_data

TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("licence_cases.toml").read_text(encoding="utf-8"))
VOCABULARY = TABLE["vocabulary"]
CASES = [pytest.param(case, id=case["id"]) for case in TABLE["case"]]


@pytest.mark.parametrize("case", CASES)
def test_the_ruling_is_the_one_that_was_read_from_the_text(case: dict[str, Any]) -> None:
    ruling = check(case["release"], case["answers"])
    assert ruling.verdict == case["verdict"]
    assert set(case["clauses"]) <= set(ruling.clauses)
    assert set(case.get("doubts", ())) <= set(ruling.doubts)
    assert set(ruling.unmet) == set(case.get("unmet", ()))
    assert set(ruling.duties) == set(case.get("duties", ()))
    assert set(ruling.fields) == set(case.get("fields", ()))
    if "badges" in case:
        assert list(ruling.badges) == case["badges"]
    if "counted_month" in case:
        assert ruling.licence.counted_month == case["counted_month"]
    if "contracting_party" in case:
        assert ruling.contracting_party == case["contracting_party"]


@pytest.mark.parametrize("case", CASES)
def test_every_finding_names_its_clause_and_what_led_to_it(case: dict[str, Any]) -> None:
    ruling = check(case["release"], case["answers"])
    for found in ruling.findings:
        assert found.why.endswith((".", ":")) and found.verdict in VERDICTS
        assert found.clauses or found.doubt or found.verdict == "contradiction"
        if found.verdict not in ("allowed", "contradiction") and ruling.release.is_released:
            assert found.because


def test_there_are_at_least_forty_cases_and_each_generation_has_some() -> None:
    ids = {check(case["release"], {}).licence.id for case in TABLE["case"]}
    assert len(TABLE["case"]) >= 40 and ids == set(licence_data().licences)


def test_the_questions_are_those_of_the_table() -> None:
    lists = {name: tuple(values) for name, values in VOCABULARY.items() if isinstance(values, list)}
    for question in FIELDS.values():
        if question.choices:
            assert question.choices == lists[question.field]
    free = {*VOCABULARY["users"], *VOCABULARY["text"], *VOCABULARY["releases"]}
    assert set(FIELDS) == {name for name in lists if name in FIELDS} | free
    assert set(VERDICTS) == set(VOCABULARY["verdict"])
    assert dict(licence_data().duties).keys() == VOCABULARY["duties"].keys()
    assert dict(licence_data().doubts).keys() == VOCABULARY["doubts"].keys()


def test_unanswered_questions_are_taken_as_the_table_takes_them() -> None:
    defaults = {question.field: question.default for question in FIELDS.values() if question.default is not None}
    assert defaults | {"users_per_month": DEFAULT_USERS} == TABLE["defaults"]


@pytest.mark.parametrize("name", TABLE["licences"])
def test_what_a_licence_fixes_is_what_the_table_says(name: str) -> None:
    ours, wanted = licence_data().licences[name], TABLE["licences"][name]
    assert ours.is_open_source == wanted["open_source_licence"]
    assert ours.version_date == wanted.get("version_date") and ours.counted_month == wanted.get("counted_month")
    assert list(ours.notice or ()) == wanted.get("notice", [])
    assert ours.badge == wanted.get("badge") and ours.name_prefix == wanted.get("name_prefix")
    assert ours.forbids_improving_other_llms == wanted["forbids_improving_other_llms"]
    assert ours.eu_clause == wanted["eu_clause"]


def test_every_release_has_a_licence_that_is_known() -> None:
    from herd.family.catalogue import releases

    assert all(licence_of(release).title for release in releases().values())
    assert "not legal advice" in DISCLAIMER
