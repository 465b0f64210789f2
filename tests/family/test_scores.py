"""Published scores: each with its source, compared only where the setting is the same."""

from __future__ import annotations

import pytest

from herd.errors import FileProblem
from herd.family.catalogue import releases
from herd.family.scores import in_common, read_scores, scores_of

SMALL = """
[[tables]]
source = "a card"
releases = ["llama-3.1-8b", "llama-3.1-70b"]
[tables.scores]
"MMLU | 5-shot" = [66.7, "-"]
"""


def value(name: str, title: str, source: str) -> float:
    (found,) = {score.value for score in scores_of(name) if (score.title, score.source) == (title, source)}
    return found


@pytest.mark.parametrize(
    ("name", "title", "source", "expected"),
    [
        ("llama-1-65b", "COPA (0-shot)", "LLaMA model card", 94.0),
        ("llama-2-70b", "MMLU", "Llama 2 model card", 68.9),
        ("llama-2-7b-chat", "TruthfulQA", "Llama 2 model card", 57.04),
        ("code-llama-34b-python", "HumanEval (pass@1)", "Code Llama paper", 53.7),
        ("llama-3-8b-instruct", "MMLU (5-shot)", "Llama 3 model card", 68.4),
        ("llama-3-8b-instruct", "MMLU (5-shot)", "Llama 3.1 model card", 68.5),
        ("llama-3.1-405b-instruct", "MATH CoT (0-shot)", "Llama 3.1 model card", 73.8),
        ("llama-3.1-8b-instruct", "MMLU in Thai (5-shot)", "Llama 3.1 model card", 50.32),
        ("llama-3.2-3b-instruct-qlora", "IFEval", "Llama 3.2 model card", 75.9),
        ("llama-3.2-90b-vision-instruct", "DocVQA (test)", "Llama 3.2 Vision model card", 90.1),
        ("llama-3.3-70b-instruct", "IFEval", "Llama 3.3 model card", 92.1),
        ("llama-4-maverick-instruct", "GPQA Diamond (0-shot)", "Llama 4 model card", 69.8),
        ("llama-guard-3-8b", "F1 (responses in English)", "Llama Guard 3 model card", 93.9),
        ("llama-guard-4-12b", "Recall (responses to several images)", "Llama Guard 4 model card", 61.0),
        ("prompt-guard-2-22m", "Recall at 1 % false positives (jailbreaks in English)", "Llama Prompt Guard 2 model card", 88.7),
    ],
)
def test_scores_are_those_of_the_cards(name: str, title: str, source: str, expected: float) -> None:
    assert value(name, title, source) == expected


def test_every_score_belongs_to_a_release_and_has_a_source() -> None:
    scores = [score for name in releases() for score in scores_of(name)]
    assert len(scores) > 500 and all(score.source and score.benchmark for score in scores)
    assert all(score.is_secondhand for name in ("llama-4-behemoth", "code-llama-7b") for score in scores_of(name))


def test_one_source_is_preferred_where_releases_are_compared() -> None:
    (row,) = [row for row in in_common(["llama-3-8b-instruct", "llama-3.1-8b-instruct"]) if row.title == "MMLU (5-shot)"]
    assert row.is_one_source and {name: score.value for name, score in row.scores.items()} == {
        "llama-3-8b-instruct": 68.5,
        "llama-3.1-8b-instruct": 69.4,
    }
    (row,) = [row for row in in_common(["llama-3-8b", "llama-3.2-1b"]) if row.title == "MMLU (5-shot)"]
    assert not row.is_one_source
    assert in_common(["llama-3.1-8b"]) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('source = "a card"', ""), "has no source"),
        (("llama-3.1-70b", "llama-3.1-71b"), "'llama-3.1-71b', which is no release"),
        (("[66.7, ", "["), "has 1 values for 2 releases"),
        (("66.7", "66"), "expected a number with a point"),
        (("source =", "sauce ="), "unknown key 'sauce'"),
        (("[[tables]]", "[[tables"), "not valid TOML"),
    ],
)
def test_wrong_scores_are_refused_by_name(change: tuple[str, str], complaint: str) -> None:
    assert [score.value for score in read_scores(SMALL)["llama-3.1-8b"]] == [66.7]
    with pytest.raises(FileProblem) as caught:
        read_scores(SMALL.replace(*change))
    assert complaint in str(caught.value)
