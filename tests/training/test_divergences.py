"""Divergences from a teacher of whom the most likely tokens are known, against sums written out in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from herd.errors import UsageError
from herd.training.signals.divergences import SoftWeight, divergence, forward_kl, grouped, jensen_shannon, most_likely, reverse_kl

RANDOM = np.random.default_rng(3)
TEACHER, STUDENT = RANDOM.normal(0, 3, (4, 12)), RANDOM.normal(0, 3, (4, 12))


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:  # type: ignore[type-arg]
    weights = np.exp(logits / temperature)
    return weights / weights.sum(-1, keepdims=True)


def outcomes(row: np.ndarray, ids: list[int]) -> list[float]:  # type: ignore[type-arg]
    chosen = [float(row[each]) for each in ids]
    return [*chosen, sum(float(x) for index, x in enumerate(row) if index not in ids)]


def formula(name: str, student: np.ndarray, k: int, temperature: float = 1.0, beta: float = 0.3) -> float:  # type: ignore[type-arg]
    """The sum over k tokens and the rest, over all rows."""
    total = 0.0
    for row, other in zip(TEACHER, student, strict=True):
        ids = [int(each) for each in np.argsort(-row)[:k]]
        p, q = outcomes(probabilities(row, temperature), ids), outcomes(probabilities(other, temperature), ids)
        pairs = [(a, b) for a, b in zip(p, q, strict=True) if a > 0 and b > 0]
        if name == "forward":
            total += sum(a * math.log(a / b) for a, b in pairs)
        elif name == "reverse":
            total += sum(b * math.log(b / a) for a, b in pairs)
        else:
            for a, b in pairs:
                m = beta * a + (1 - beta) * b
                total += beta * a * math.log(a / m) + (1 - beta) * b * math.log(b / m)
    return total


@pytest.mark.parametrize("name", ["forward", "reverse", "js"])
@pytest.mark.parametrize(("k", "temperature"), [(3, 1.0), (3, 2.0), (11, 1.0), (12, 1.0), (40, 1.0)])
def test_divergences_and_their_gradients_are_the_sums_over_k_tokens_and_the_rest(name: str, k: int, temperature: float) -> None:
    ids, p = most_likely(torch.tensor(TEACHER), k, temperature)
    student = torch.tensor(STUDENT, requires_grad=True)
    loss = divergence(name, p, grouped(student, ids, temperature), beta=0.3).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(loss.item(), formula(name, STUDENT, k, temperature), rtol=1e-12)
    assert student.grad is not None
    for index in np.ndindex(STUDENT.shape):
        values = []
        for sign in (1, -1):
            moved = STUDENT.copy()
            moved[index] += sign * 1e-5
            values.append(formula(name, moved, k, temperature))
        np.testing.assert_allclose(student.grad[index].item(), (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_a_student_equal_to_the_teacher_has_no_divergence_and_no_gradient() -> None:
    student = torch.tensor(TEACHER, requires_grad=True)
    ids, p = most_likely(torch.tensor(TEACHER), 4)
    for measure in (forward_kl, reverse_kl, jensen_shannon):
        loss = measure(p, grouped(student, ids)).sum()
        (gradient,) = torch.autograd.grad(loss, student)
        assert abs(loss.item()) < 1e-14 and float(gradient.abs().max()) < 1e-14


def test_grouping_never_makes_a_divergence_larger() -> None:
    student = torch.tensor(STUDENT)
    for measure in (forward_kl, reverse_kl, jensen_shannon):
        values = []
        for k in range(1, 13):
            ids, p = most_likely(torch.tensor(TEACHER), k)
            values.append(measure(p, grouped(student, ids)))
        for fewer, more in itertools.pairwise(values):
            assert bool((fewer <= more + 1e-12).all())


def test_a_rest_of_almost_no_mass_keeps_its_gradient() -> None:
    logits = torch.tensor([[0.0, -100.0, -101.0]], dtype=torch.float64, requires_grad=True)
    q = grouped(logits, torch.tensor([[0]]))
    p = torch.tensor([[math.log(0.5), math.log(0.5)]], dtype=torch.float64)
    forward_kl(p, q).sum().backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad[0].tolist(), [0.5, -0.5 / (1 + math.exp(-1)), -0.5 / (1 + math.exp(1))], rtol=1e-12)


def test_leaving_the_rest_out_would_reward_a_student_that_gives_it_mass() -> None:
    """Why the rest is an outcome of its own: a student that doubts everything the teacher is sure of must not be called equal."""
    teacher = torch.tensor([[10.0, 0.0, 0.0, 0.0, 0.0]])
    ids, p = most_likely(teacher, 1)
    doubtful = grouped(torch.zeros(1, 5), ids)
    assert forward_kl(p, doubtful).item() > 1


def test_the_weight_of_soft_targets_goes_from_start_to_end() -> None:
    linear = SoftWeight(start=1.0, end=0.0)
    assert [linear.at(step, 5) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    cosine = SoftWeight(start=1.0, end=0.0, shape="cosine")
    np.testing.assert_allclose([cosine.at(step, 5) for step in (0, 2, 4)], [1.0, 0.5, 0.0], atol=1e-12)
    assert SoftWeight(start=0.3, end=0.9, shape="constant").at(3, 5) == 0.3
    assert linear.at(0, 1) == 1.0


def test_unknown_divergences_and_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="divergence 'kl'"):
        divergence("kl", torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(UsageError, match="from 0 to 1"):
        SoftWeight(start=1.5)
    with pytest.raises(UsageError, match="shape 'step'"):
        SoftWeight(shape="step")
