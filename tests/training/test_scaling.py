"""What a budget buys, against the published formulas and figures."""

from __future__ import annotations

from typing import Any

import pytest

from cli.running import invoke
from herd.errors import UsageError
from herd.training.beginning.scaling import best_weights, fitted_loss, operations_in, shape_for, suggest


def test_the_best_number_of_weights_has_the_lowest_fitted_loss_of_all() -> None:
    for operations in (1e17, 1e20, 5.76e23):
        best = best_weights(operations)
        losses = [fitted_loss(best * factor, operations / (6 * best * factor)) for factor in (0.8, 0.99, 1.0, 1.01, 1.25)]
        assert min(losses) == losses[2]


def test_chinchillas_budget_gives_about_chinchilla() -> None:
    found = suggest(5.76e23)
    assert found.weights == pytest.approx(70e9, rel=0.3) and found.tokens == pytest.approx(1.4e12, rel=0.3)


def test_metas_rule_gives_llama_3_at_405_billion_weights_about_its_published_optimum() -> None:
    found = suggest(3.8e25, rule="meta")
    assert found.weights == pytest.approx(402e9, rel=0.05) and found.tokens == pytest.approx(16.55e12, rel=0.05)
    assert any("outside" in note for note in found.notes)


def test_batch_and_learning_rate_are_those_of_the_fit_at_its_budgets() -> None:
    found = suggest(1e19)
    assert found.batch_tokens == pytest.approx(0.292 * 1e19**0.3271, rel=0.42) and found.lr == pytest.approx(
        0.3118 * 1e19**-0.125, rel=0.02
    )
    assert not found.notes


def test_a_small_budget_is_not_spent_on_a_handful_of_steps_and_is_said_to_be_a_guess() -> None:
    found = suggest(1e14, vocab_size=2048)
    assert found.steps >= 70 and found.loss is None
    assert any("fitted" in note for note in found.notes)


def test_tokens_for_each_weight_can_be_given() -> None:
    found = suggest(6e18, tokens_per_weight=100)
    assert found.tokens / found.weights == pytest.approx(100, rel=1e-3)


def test_shapes_have_about_the_weights_and_the_aspect_of_small_llamas() -> None:
    width, layers = shape_for(1e9, 0)
    assert 12 * layers * width**2 == pytest.approx(1e9, rel=0.1) and 70 < width / layers < 140


def test_time_becomes_operations() -> None:
    assert operations_in(60, 1e12) == 6e13


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"operations": float("nan")}, "at least 1e9"),
        ({"operations": 1e18, "rule": "kaplan"}, "no rule 'kaplan'"),
        ({"operations": 1e18, "tokens_per_weight": 0.0}, "above 0"),
    ],
)
def test_a_budget_that_is_none_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        suggest(**arguments)


def test_the_command_says_where_the_number_of_weights_is_from() -> None:
    budget = ("train", "scale", "--operations", "1e18")
    for more, source in (
        ((), "fitted loss is lowest; arXiv 2404.10102"),
        (("--rule", "meta"), "arXiv 2407.21783"),
        (("--tokens-per-weight", "200"), "as --tokens-per-weight says"),
    ):
        lines = invoke(*budget, *more).output.splitlines()
        assert [line.endswith(source) for line in lines if line.startswith("weights")] == [True]


@pytest.mark.parametrize(
    ("more", "said"), [(("--speed", "1e9"), "--speed is how fast"), (("--rule", "meta", "--tokens-per-weight", "20"), "give one of them")]
)
def test_the_command_refuses_what_would_not_count(more: tuple[str, ...], said: str) -> None:
    done = invoke("train", "scale", "--operations", "1e18", *more)
    assert done.exit_code == 2 and said in done.output
