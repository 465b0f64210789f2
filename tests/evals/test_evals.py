"""The measures, against distributions that are known in closed form."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from evals.scorers import FakeScorer, logprobs
from herd.errors import FileProblem, UsageError
from herd.evals.accuracy import MAX_LINE_BYTES, Question, measure_accuracy, read_questions, score
from herd.evals.divergence import measure_divergence
from herd.evals.perplexity import measure_perplexity
from herd.evals.rows import ROWS, Windowing, log_softmax, pieces, windows

TEXT = "".join(random.Random(5).choices("abcdef", k=333))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("piece", [1, 5, 32, 100])
def test_perplexity_of_a_model_without_memory_is_that_of_its_rows(bos: bool, piece: int) -> None:
    scorer = FakeScorer(bos=bos, piece=piece)
    expected = logprobs(scorer, scorer.encode(TEXT))
    found = measure_perplexity(scorer, TEXT)
    assert found.tokens == len(expected) == len(TEXT) - (not bos)
    assert found.nll == pytest.approx(-expected.mean(), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-6)
    assert found.nll_error == pytest.approx(expected.std(ddof=1) / math.sqrt(len(expected)), rel=1e-6)
    assert found.perplexity_low < found.perplexity < found.perplexity_high


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(
    ("size", "stride"), [(size, stride) for size in (2, 3, 16, 17, 64) for stride in (1, 2, 7, 15, 63) if stride < size]
)
def test_every_token_is_scored_once_with_its_context(bos: bool, size: int, stride: int) -> None:
    prefix = [0] if bos else []
    for count in (2, 15, 16, 17, 63, 64, 65, 200):
        text, scored = list(range(100, 100 + count)), []
        for window in windows(text, prefix, size, stride):
            own = window.tokens[len(prefix) :]
            assert len(window.tokens) <= size and window.first >= 1 and window.num_scored >= 1
            assert window.tokens[: len(prefix)] == prefix and own == text[own[0] - 100 :][: len(own)]
            new, room = window.tokens[window.first :], size - len(prefix)
            assert window.first - len(prefix) >= min(room - min(stride, room), new[0] - 100)
            scored += new
        assert scored == text[0 if bos else 1 :]


def test_windows_give_the_model_the_context_they_promise() -> None:
    scorer = FakeScorer(context=3)
    whole = logprobs(scorer, scorer.encode(TEXT))
    found: list[float] = []
    measure_perplexity(scorer, TEXT, Windowing(size=40, stride=20), each=lambda ids, values: found.extend(values.tolist()))
    assert np.allclose(found, whole, atol=1e-6)
    assert max(scorer.lengths) == 40


def test_only_so_many_tokens_are_scored_and_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    found = measure_perplexity(FakeScorer(), TEXT, Windowing(size=16, max_tokens=50), told=lambda *pair: told.append(pair))
    assert found.tokens == 50 and told[-1] == (50, 50)


@pytest.mark.parametrize(
    ("windowing", "complaint"),
    [
        (Windowing(size=65), "window is 65; it must be from 2 to the context of 64"),
        (Windowing(size=1), "window is 1"),
        (Windowing(size=16, stride=16), "stride is 16; it must be from 1 to 15"),
        (Windowing(stride=0), "stride is 0"),
        (Windowing(max_tokens=1), "max_tokens is 1"),
    ],
)
def test_impossible_windows_are_refused(windowing: Windowing, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        measure_perplexity(FakeScorer(), TEXT, windowing)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("text", ["", "a", "ZZZ"])
def test_a_text_that_is_too_short_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        measure_perplexity(FakeScorer(bos=False), text)


def test_pieces_are_of_one_size_whatever_the_scorer_gives() -> None:
    for piece in (1, 7, ROWS, 50, 1000):
        rows = list(pieces(FakeScorer(piece=piece), list(range(7)) * 11))
        assert [len(each) for each in rows] == [ROWS, ROWS, 77 - 2 * ROWS]
        assert np.array_equal(np.concatenate(rows), FakeScorer().rows(list(range(7)) * 11))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_the_file_s_fault(value: float) -> None:
    with pytest.raises(FileProblem, match="not numbers"):
        log_softmax(np.array([[0.0, 1.0], [value, 0.0]], dtype=np.float32))


def test_large_logits_do_not_overflow() -> None:
    found = log_softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32))
    assert found[0, 0] == 0.0 and found[1] == pytest.approx(np.log([0.5, 0.5]))


def test_a_model_does_not_diverge_from_itself() -> None:
    found = measure_divergence(FakeScorer(), FakeScorer(piece=9), TEXT)
    assert (found.kl_mean, found.kl_max, found.agreement, found.logprob_change_max) == (0.0, 0.0, 1.0, 0.0)
    assert found.nll_p == found.nll_q == pytest.approx(measure_perplexity(FakeScorer(), TEXT).nll)


def test_divergence_is_the_sum_of_its_definition() -> None:
    p, q = FakeScorer(), FakeScorer(sharpness=0.5)
    tokens = p.encode(TEXT)
    found = measure_divergence(p, q, TEXT, Windowing(size=20))
    table_p, table_q = (np.exp(s.rows(tokens).astype(np.float64)) for s in (p, q))
    table_p, table_q = table_p / table_p.sum(1, keepdims=True), table_q / table_q.sum(1, keepdims=True)
    each = (table_p * np.log(table_p / table_q)).sum(1)[:-1]
    assert found.kl_mean == pytest.approx(each.mean(), rel=1e-6)
    assert found.kl_median == pytest.approx(np.median(each), rel=1e-6)
    assert found.kl_p99 == pytest.approx(np.percentile(each, 99), rel=1e-6)
    assert found.agreement == 1.0 and found.tokens == len(TEXT)
    change = np.abs(logprobs(p, tokens) - logprobs(q, tokens))
    assert (found.logprob_change_mean, found.logprob_change_max) == (pytest.approx(change.mean()), pytest.approx(change.max()))


def test_models_with_other_tokens_are_not_compared() -> None:
    with pytest.raises(UsageError, match="7 tokens and big has 9"):
        measure_divergence(FakeScorer(), FakeScorer(vocabulary=9, name="big"), TEXT)
    with pytest.raises(UsageError, match="different tokens"):
        measure_divergence(FakeScorer(), FakeScorer(bos=False), TEXT)


def test_a_choice_is_scored_after_its_question() -> None:
    scorer = FakeScorer()
    total, count = score(scorer, "abc", "de")
    assert count == 2 and total == pytest.approx(logprobs(scorer, scorer.encode("abcde"))[-2:].sum(), rel=1e-6)
    assert score(scorer, "", "de")[1] == 2
    with pytest.raises(UsageError, match="cannot be scored"):
        score(FakeScorer(bos=False), "", "a")
    with pytest.raises(UsageError, match="the context has 64"):
        score(scorer, "a" * 64, "b")


def test_accuracy_counts_the_likeliest_choice() -> None:
    scorer = FakeScorer(sharpness=3.0)
    choices = ("a", "bcd", "ffff")
    sums = [score(scorer, "abc", choice) for choice in choices]
    best = max(range(3), key=lambda i: sums[i][0])
    best_normalized = max(range(3), key=lambda i: sums[i][0] / sums[i][1])
    questions = [Question("abc", choices, best), Question("abc", choices, (best + 1) % 3), Question("abc", choices, best_normalized)]
    found = measure_accuracy(scorer, questions)
    assert found.accuracy == sum(q.answer == best for q in questions) / 3
    assert found.accuracy_normalized == sum(q.answer == best_normalized for q in questions) / 3
    assert found.chance == pytest.approx(1 / 3) and found.questions == 3
    with pytest.raises(UsageError, match="no question"):
        measure_accuracy(scorer, [])


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_questions_are_read_line_by_line(tmp_path: Path) -> None:
    good = {"question": "q", "choices": ["x", "y"], "answer": 1, "id": "7"}
    file = write(tmp_path / "f", good, "", good, good)
    assert list(read_questions(file, 2)) == [Question("q", ("x", "y"), 1)] * 2
    assert len(list(read_questions(file))) == 3


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "f:2 is not JSON"),
        ("[" * 100_000, "f:2 is not JSON"),
        ("[]", "f:2 is list"),
        ({"question": "q", "choices": ["x", "y"]}, "f:2 lacks answer"),
        ({"question": "q", "choices": ["x", "y"], "answer": 0, "label": 1}, "f:2 has label"),
        ({"question": 1, "choices": ["x", "y"], "answer": 0}, "question is int"),
        ({"question": "q", "choices": ["x"], "answer": 0}, "choices must be"),
        ({"question": "q", "choices": ["x", ""], "answer": 0}, "choices must be"),
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, "answer is 2; expected the index"),
        ({"question": "q", "choices": ["x", "y"], "answer": True}, "answer is True"),
        ({"question": "q", "choices": ["x", "y"], "answer": "x"}, "answer is 'x'"),
        ('"' + "x" * MAX_LINE_BYTES, "f:2 is longer than"),
    ],
    ids=range(12),
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, complaint: str) -> None:
    file = write(tmp_path / "f", {"question": "q", "choices": ["x", "y"], "answer": 1}, line)
    with pytest.raises(FileProblem) as caught:
        list(read_questions(file))
    assert complaint in str(caught.value) and len(str(caught.value)) < 400


def test_a_file_of_questions_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="cannot be read"):
        list(read_questions(tmp_path / "none"))
