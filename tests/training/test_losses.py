"""Every loss and its gradient against the paper's formula, written out in plain Python over float64 numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.errors import UsageError
from herd.training.signals import losses

Array = NDArray[np.float64]
RANDOM = np.random.default_rng(7)
CHOSEN, REJECTED = RANDOM.normal(-20, 8, 6), RANDOM.normal(-22, 8, 6)
LIKELY, UNLIKELY = -RANDOM.exponential(0.7, 6), -RANDOM.exponential(1.5, 6)
DOCUMENT = np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 3])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def numeric_gradient(function: Callable[..., float], inputs: tuple[Array, ...]) -> list[Array]:
    """Central differences in float64: right to about nine digits."""
    found = []
    for which, array in enumerate(inputs):
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            values = []
            for sign in (1, -1):
                moved = [each.copy() for each in inputs]
                moved[which][index] += sign * 1e-5
                values.append(function(*moved))
            gradient[index] = (values[0] - values[1]) / 2e-5
        found.append(gradient)
    return found


def agree(ours: Callable[..., Tensor], formula: Callable[..., float], *inputs: Array) -> None:
    """Loss and gradient in float64 to 1e-12 and 1e-8, and in float32 to float32."""
    expected, gradients = formula(*inputs), numeric_gradient(formula, inputs)
    for dtype, exact, near in ((torch.float64, 1e-12, 1e-8), (torch.float32, 3e-6, 3e-5)):
        tensors = [torch.tensor(each, dtype=dtype, requires_grad=True) for each in inputs]
        loss = ours(*tensors)
        loss.backward()  # type: ignore[no-untyped-call]
        np.testing.assert_allclose(loss.item(), expected, rtol=exact, atol=exact)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            assert tensor.grad is not None
            np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=near, atol=near)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_is_equation_7_of_its_paper(smoothing: float) -> None:
    def formula(chosen: Array, rejected: Array) -> float:
        total = 0.0
        for w, l in zip(chosen, rejected, strict=True):  # noqa: E741
            total += -(1 - smoothing) * math.log(sigmoid(0.1 * (w - l))) - smoothing * math.log(sigmoid(-0.1 * (w - l)))
        return total / len(chosen)

    agree(lambda w, l: losses.dpo(w, l, 0.1, smoothing).mean(), formula, CHOSEN, REJECTED)  # noqa: E741


def test_the_gradient_of_dpo_is_the_one_of_its_section_4() -> None:
    chosen = torch.tensor(CHOSEN, requires_grad=True)
    losses.dpo(chosen, torch.tensor(REJECTED), 0.3).sum().backward()
    expected = [-0.3 * sigmoid(0.3 * (l - w)) for w, l in zip(CHOSEN, REJECTED, strict=True)]  # noqa: E741
    assert chosen.grad is not None
    np.testing.assert_allclose(chosen.grad.numpy(), expected, rtol=1e-12)


def test_the_nll_term_of_dpo_is_a_mean_per_answer() -> None:
    counts = np.array([3.0, 9, 1, 4, 4, 17])
    agree(
        lambda x: losses.dpo_nll(x, torch.from_numpy(counts)).mean(),
        lambda x: sum(-a / n for a, n in zip(x, counts, strict=True)) / 6,
        CHOSEN,
    )


def test_simpo_is_equation_6_of_its_paper() -> None:
    def formula(chosen: Array, rejected: Array) -> float:
        return sum(-math.log(sigmoid(2.0 * w - 2.0 * l - 0.5)) for w, l in zip(chosen, rejected, strict=True)) / 6  # noqa: E741

    agree(lambda w, l: losses.simpo(w, l, 2.0, 0.5).mean(), formula, LIKELY, UNLIKELY)  # noqa: E741


def test_orpo_is_equation_7_of_its_paper() -> None:
    def odds(mean: float) -> float:
        return math.exp(mean) / (1 - math.exp(mean))

    def formula(chosen: Array, rejected: Array) -> float:
        return sum(-math.log(sigmoid(math.log(odds(w) / odds(l)))) for w, l in zip(chosen, rejected, strict=True)) / 6  # noqa: E741

    agree(lambda w, l: losses.orpo(w, l).mean(), formula, LIKELY, UNLIKELY)  # noqa: E741


@pytest.mark.parametrize("logprob", [-1e-30, -1e-7, -0.01, -math.log(2), -1.0, -50.0, -800.0])
def test_the_logarithm_of_the_rest_and_its_gradient_are_finite_everywhere(logprob: float) -> None:
    x = torch.tensor(logprob, dtype=torch.float64, requires_grad=True)
    y = losses.log_of_rest(x)
    y.backward()
    assert x.grad is not None and math.isfinite(y.item()) and math.isfinite(x.grad.item())
    if logprob < -1e-10:
        np.testing.assert_allclose(y.item(), math.log(-math.expm1(logprob)), rtol=1e-12, atol=1e-20)


def test_kto_is_the_loss_of_its_section_4_with_a_point_of_reference_that_has_no_gradient() -> None:
    ratios, mismatched = RANDOM.normal(0, 6, 6), RANDOM.normal(1, 2, 6)
    is_good = np.array([True, False, True, True, False, False])

    def formula(ratio: Array) -> float:
        z = max(0.0, float(sum(mismatched)) / 6)
        good = [1.5 * (1 - sigmoid(0.2 * (r - z))) for r in ratio[is_good]]
        bad = [0.5 * (1 - sigmoid(0.2 * (z - r))) for r in ratio[~is_good]]
        return (sum(good) + sum(bad)) / 6

    others = torch.tensor(mismatched, requires_grad=True)
    kl = losses.kto_kl(others)
    assert not kl.requires_grad and kl.item() > 0
    agree(lambda r: losses.kto(r, torch.from_numpy(is_good), kl.to(r.dtype), 0.2, 1.5, 0.5).mean(), formula, ratios)
    assert losses.kto_kl(torch.tensor([-3.0, -1.0])).item() == 0


@pytest.mark.parametrize(("margin", "centre"), [(0.0, 0.0), (0.7, 0.01)])
def test_a_reward_models_loss_is_bradley_terry_with_a_margin(margin: float, centre: float) -> None:
    def formula(chosen: Array, rejected: Array) -> float:
        pairs = zip(chosen, rejected, strict=True)
        return sum(-math.log(sigmoid(w - l - margin)) + centre * (w + l) ** 2 for w, l in pairs) / 6  # noqa: E741

    agree(lambda w, l: losses.bradley_terry(w, l, margin, centre).mean(), formula, LIKELY, UNLIKELY)  # noqa: E741


def test_advantages_are_rewards_against_their_own_group() -> None:
    rewards = np.array([[1.0, 0, 0, 1], [0, 0, 0, 0], [2, 1, 0, 5]])
    expected = np.zeros_like(rewards)
    for index, group in enumerate(rewards):
        mean = sum(group) / 4
        deviation = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
        expected[index] = [(r - mean) / (deviation + 1e-4) for r in group]
    given = torch.from_numpy(rewards)
    np.testing.assert_allclose(losses.advantages(given).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(losses.advantages(given, "none").numpy(), rewards - rewards.mean(1, keepdims=True))
    whole = math.sqrt(((rewards - rewards.mean()) ** 2).sum() / 11)
    np.testing.assert_allclose(losses.advantages(given, "batch").numpy(), (rewards - rewards.mean(1, keepdims=True)) / (whole + 1e-4))
    assert losses.is_informative(given).tolist() == [True, False, True]


def grpo_formula(over: str, low: float, high: float, beta: float, old: Array, reference: Array, gains: Array) -> Callable[[Array], float]:
    """Equation 3 of DeepSeekMath, token by token, with the means of the three papers."""

    def formula(logprobs: Array) -> float:
        answers: dict[int, list[float]] = {}
        for x, o, r, document in zip(logprobs, old, reference, DOCUMENT, strict=True):
            ratio = math.exp(x - o)
            clipped = min(max(ratio, 1 - low), 1 + high)
            kl = math.exp(r - x) - (r - x) - 1
            answers.setdefault(int(document), []).append(-min(ratio * gains[document], clipped * gains[document]) + beta * kl)
        if over == "answers":
            return sum(sum(each) / len(each) for each in answers.values()) / len(answers)
        total = sum(sum(each) for each in answers.values())
        return total / len(DOCUMENT) if over == "tokens" else total / (len(answers) * 8)

    return formula


@pytest.mark.parametrize("over", ["answers", "tokens", "constant"])
@pytest.mark.parametrize(("low", "high", "beta"), [(0.2, 0.2, 0.0), (0.2, 0.28, 0.04)])
def test_grpo_and_its_variants_are_their_papers_sums(over: str, low: float, high: float, beta: float) -> None:
    logprobs = -RANDOM.exponential(1.5, 10)
    old, reference = logprobs + RANDOM.normal(0, 0.3, 10), logprobs + RANDOM.normal(0, 0.5, 10)
    gains = np.array([1.2, -0.7, 0.4, -0.9])

    def ours(x: Tensor) -> Tensor:
        at = torch.from_numpy(DOCUMENT)
        before, start, gain = (torch.tensor(each, dtype=x.dtype) for each in (old, reference, gains[DOCUMENT]))
        values = losses.clipped_gain(x, before, gain, low, high) + beta * losses.k3(x, start)
        weights = losses.token_weights(torch.bincount(at), over, longest=8)
        return (values * weights[at]).sum()

    agree(ours, grpo_formula(over, low, high, beta, old, reference, gains), logprobs)


def test_answers_that_are_left_out_count_nothing_and_only_a_mean_over_tokens_leaves_them_out_of_the_whole() -> None:
    lengths, counts = torch.tensor([2, 4, 4]), torch.tensor([True, True, False])
    assert losses.token_weights(lengths, "answers", counts_N=counts).tolist() == [1 / 6, 1 / 12, 0]
    assert losses.token_weights(lengths, "tokens", counts_N=counts).tolist() == [1 / 6, 1 / 6, 0]
    assert losses.token_weights(lengths, "constant", 8, counts_N=counts).tolist() == [1 / 24, 1 / 24, 0]
    assert losses.token_weights(lengths, "tokens", counts_N=counts & False).tolist() == [0, 0, 0]


def test_tokens_that_left_the_trusted_range_have_no_gradient() -> None:
    logprobs = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.1], dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    old = torch.zeros(5, dtype=torch.float64)
    losses.clipped_gain(logprobs, old, gains, 0.2, 0.28).sum().backward()
    clipped = losses.is_clipped(logprobs, old, gains, 0.2, 0.28)
    assert clipped.tolist() == [True, True, False, False, False]
    assert logprobs.grad is not None and (logprobs.grad == 0).tolist() == clipped.tolist()


def test_the_penalty_of_long_answers_grows_over_the_buffer_only() -> None:
    found = losses.overlong_penalty(torch.tensor([10, 80, 90, 100, 120]), longest=100, buffer=20)
    assert found.tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_sampler_weights_are_bounded_and_without_gradient() -> None:
    trainer = torch.tensor([-1.0, -1.0], requires_grad=True)
    found = losses.sampler_weight(trainer, torch.tensor([-1.5, -9.0]), most=2.0)
    assert not found.requires_grad
    np.testing.assert_allclose(found.numpy(), [math.exp(0.5), 2.0], rtol=1e-6)


def test_documents_without_rows_count_as_zero() -> None:
    values, at = torch.tensor([1.0, 3.0]), torch.tensor([0, 2])
    assert losses.document_sums(values, at, 4).tolist() == [1, 0, 3, 0]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="scale of advantages 'std'"):
        losses.advantages(torch.zeros(1, 2), "std")
    with pytest.raises(UsageError, match="mean over 'words'"):
        losses.token_weights(torch.ones(1), "words")
