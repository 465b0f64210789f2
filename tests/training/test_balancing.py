"""Experts that are equally busy: biases that level loads and are gone at the end, and a loss whose gradient is the formula's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from herd.errors import FileProblem
from herd.models.llama4 import Llama4Config
from herd.models.rope import Rope
from herd.training.beginning.initialising import initial_leaf
from herd.training.settings.pretrain import BalancingSettings
from herd.training.student.balancing import Balance, BalancedOps, levelled
from herd.training.student.batches import Batch, Document, batch_of
from herd.training.student.lora import LearningTextOps
from herd.training.student.model import Student
from tiny import tiny_llama4

STEPS = 200
SMALL: dict[str, Any] = {"width": 32, "num_heads": 4, "head_width": 8, "ffn_width": 64, "expert_width": 32, "vocab_size": 64}


def small(**changes: Any) -> Llama4Config:
    return tiny_llama4(**SMALL, rope=Rope(10000.0, 8), **changes)


def student_with(settings: BalancingSettings, cfg: Llama4Config) -> tuple[Student, Balance]:
    student = Student(cfg, initial_leaf(cfg, 1))
    balance = Balance(settings, student.weights, cfg.num_experts, STEPS, student.device)
    student.ops = BalancedOps(student.tensors, student.adapters, balance)
    return student, balance


def batch() -> Batch:
    tokens = torch.randint(0, 64, (128,), generator=torch.Generator().manual_seed(1)).tolist()
    return batch_of([Document(tuple(tokens), (0.0, *[1.0] * 127))])


@torch.no_grad()
def loads(student: Student, balance: Balance, step: int) -> dict[str, float]:
    balance.begin(step)
    balance.is_learning = balance.is_counting = True
    student.hidden(batch())
    balance.is_learning = balance.is_counting = False
    return balance.end(step)


def test_biases_level_loads_without_any_loss_and_are_gone_at_the_last_step() -> None:
    student, balance = student_with(BalancingSettings(bias=0.02, release=0.25, release_loss=0.0), small())
    for name in ("layers.1.router", "layers.3.router"):
        student.parameters[name].data.mul_(20)
    first = loads(student, balance, 0)
    assert first["expert_load_max"] > 1.25 and first["expert_load_min"] < 0.8
    for step in range(1, 150):
        levelled_loads = loads(student, balance, step)
    assert levelled_loads["expert_load_max"] < 1.15 and levelled_loads["expert_load_min"] > 0.85
    frozen = {name: bias.clone() for name, bias in balance.biases.items()}
    assert loads(student, balance, STEPS - 1) == first
    assert all(torch.equal(bias, frozen[name]) for name, bias in balance.biases.items())


def test_biases_change_who_is_chosen_and_not_what_an_expert_is_given() -> None:
    cfg = small(num_experts=2)
    student, balance = student_with(BalancingSettings(bias=0.02), cfg)
    plain = Student(cfg, initial_leaf(cfg, 1))
    for each in (student, plain):
        each.parameters["layers.1.router"].data[1] = each.parameters["layers.1.router"].data[0]
        each.parameters["layers.3.router"].data[1] = each.parameters["layers.3.router"].data[0]
    for part in ("gate", "up", "down"):
        for layer in (1, 3):
            for each in (student, plain):
                stack = each.parameters[f"layers.{layer}.experts.{part}"].data
                stack[1] = stack[0]
    balance.begin(0)
    balance.is_learning = True
    for bias in balance.biases.values():
        bias[1] = 5.0
    assert torch.allclose(student.hidden(batch()), plain.hidden(batch()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_chosen", [1, 2])
def test_experts_in_one_piece_each_are_those_of_the_backend(num_chosen: int) -> None:
    cfg = small(num_chosen=num_chosen)
    student, _ = student_with(BalancingSettings(), cfg)
    plain = Student(cfg, initial_leaf(cfg, 1))
    assert type(plain.ops) is LearningTextOps
    ours, theirs = student.hidden(batch()), plain.hidden(batch())
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for made in (ours, theirs):
        made.square().sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in student.parameters.items():
        other = plain.parameters[name].grad
        assert (parameter.grad is None) == (other is None)
        assert parameter.grad is None or other is None or (parameter.grad - other).norm() <= 1e-5 * other.norm()


def balancing_loss(scores_TE: Tensor, counts_E: Tensor) -> Tensor:
    """The formula, as it is written down."""
    shares_E = counts_E / counts_E.sum().clamp(min=1)
    return scores_TE.shape[-1] * (shares_E * torch.softmax(scores_TE, dim=-1).mean(dim=0)).sum()


def test_the_balancing_loss_is_one_when_level_and_its_gradient_is_the_formulas() -> None:
    scores = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    counts = torch.bincount(scores.argmax(-1), minlength=4)
    assert balancing_loss(torch.zeros(8, 4), torch.full((4,), 2)).item() == pytest.approx(1)
    (3 * balancing_loss(scores, counts)).backward()
    wanted, scores.grad = scores.grad, None
    passed = levelled(scores, counts, 3.0)
    assert torch.equal(passed, scores)
    (0 * passed).sum().backward()
    assert wanted is not None and torch.allclose(scores.grad, wanted, rtol=1e-6, atol=1e-9)  # type: ignore[arg-type]


def test_the_loss_levels_loads_by_learning() -> None:
    student, balance = student_with(BalancingSettings(bias=0, loss=1.0), small())
    for name in ("layers.1.router", "layers.3.router"):
        student.parameters[name].data.mul_(20)
    optimiser = torch.optim.Adam(student.parameters.values(), lr=3e-3)
    found = []
    for step in range(40):
        balance.begin(step)
        balance.is_learning = balance.is_counting = True
        optimiser.zero_grad()
        (0 * student.hidden(batch())).sum().backward()
        optimiser.step()
        found.append(balance.end(step)["expert_load_max"])
    assert found[-1] < 1.2 < found[0]


def test_biases_are_part_of_the_state_and_those_of_another_model_are_refused() -> None:
    _, balance = student_with(BalancingSettings(), small())
    _, other = student_with(BalancingSettings(), small())
    balance.biases["layers.1"][2] = 0.5
    other.restore(balance.state())
    assert torch.equal(other.biases["layers.1"], balance.biases["layers.1"])
    with pytest.raises(FileProblem, match="other layers"):
        other.restore({})
