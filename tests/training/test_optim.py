"""AdamW beside torch's, Muon beside a float64 formula and torch's, and states that go on exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from herd.errors import FileProblem, UsageError
from herd.models.weights import Kind
from herd.training.running.optim import Optimiser, kinds_of, make_optimiser, orthogonal
from herd.training.settings.optimiser import OptimiserSettings
from tiny import tiny_llama, tiny_llama4

KINDS = {
    "embed": Kind.EMBEDDING,
    "tall": Kind.MATRIX,
    "wide": Kind.MATRIX,
    "experts": Kind.EXPERTS,
    "router": Kind.ROUTER,
    "norm": Kind.NORM,
    "head": Kind.HEAD,
}
SHAPES = {"embed": (11, 8), "tall": (24, 8), "wide": (8, 24), "experts": (3, 16, 8), "router": (3, 8), "norm": (8,), "head": (11, 8)}


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.nn.Parameter]:
    made = torch.Generator().manual_seed(1)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=made).to(dtype)) for name, shape in SHAPES.items()}


def set_gradients(parameters: dict[str, torch.nn.Parameter], step: int) -> None:
    made = torch.Generator().manual_seed(100 + step)
    for name, parameter in parameters.items():
        parameter.grad = torch.randn(SHAPES[name], generator=made).to(parameter.dtype)


def run(optimiser: Optimiser, parameters: dict[str, torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        set_gradients(parameters, step)
        optimiser.step(parameters, 0.01 * (step + 1))


def made(name: str, **changes: Any) -> Optimiser:
    return make_optimiser(OptimiserSettings(name=name, **changes), KINDS)


def groups(parameters: dict[str, torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """As torch's optimisers take them: norms do not decay."""
    return [
        {"params": [value for name, value in parameters.items() if name != "norm"], "weight_decay": decay},
        {"params": [parameters["norm"]], "weight_decay": 0.0},
    ]


def test_adamw_is_torchs_step_by_step() -> None:
    ours, theirs = weights(), weights()
    reference = torch.optim.AdamW(groups(theirs, 0.1), lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    optimiser = made("adamw")
    for step in range(10):
        run(optimiser, ours, range(step, step + 1))
        set_gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = 0.01 * (step + 1)
        reference.step()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_adamw_of_weights_in_16_bits_has_moments_in_32() -> None:
    narrow, wide = weights(torch.bfloat16), weights(torch.bfloat16)
    optimiser = made("adamw")
    run(optimiser, narrow, range(1))
    values = {name: torch.nn.Parameter(value.detach().float()) for name, value in wide.items()}
    set_gradients(wide, 0)
    for name, value in values.items():
        value.grad = wide[name].grad.float()
    made("adamw").step(values, 0.01)
    assert all(tensor.dtype == torch.float32 for tensor in optimiser.state().values())
    assert all(torch.equal(narrow[name], values[name].to(torch.bfloat16)) for name in narrow)


def newton_schulz(update: np.ndarray) -> np.ndarray:
    """The iteration in float64, on one matrix, as its author writes it."""
    x = update if update.shape[0] <= update.shape[1] else update.T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if update.shape[0] <= update.shape[1] else x.T


def muon_in_float64(name: str, steps: int) -> np.ndarray:
    """Weight `name` after so many steps of Muon, by the formulas, each expert by itself."""
    value = weights()[name].detach().double().numpy()
    momentum = np.zeros_like(value)
    for step in range(steps):
        parameters = weights()
        set_gradients(parameters, step)
        gradient = parameters[name].grad.double().numpy()
        lr = 0.01 * (step + 1)
        momentum = 0.95 * momentum + 0.05 * gradient
        update = 0.05 * gradient + 0.95 * momentum
        stack = update.reshape(-1, *update.shape[-2:])
        turned = np.stack([newton_schulz(each) for each in stack]).reshape(update.shape)
        value = value * (1 - 0.1 * lr) - lr * 0.2 * max(update.shape[-2:]) ** 0.5 * turned
    return value


@pytest.mark.parametrize("name", ["tall", "wide", "experts"])
def test_muon_is_the_formula_in_float64(name: str) -> None:
    parameters = weights()
    run(made("muon"), parameters, range(5))
    expected = muon_in_float64(name, 5)
    assert np.abs(parameters[name].detach().numpy() - expected).max() < 2e-6 * np.abs(expected).max()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("name", ["tall", "wide"])
@pytest.mark.parametrize(("scale", "theirs"), [("match_rms", "match_rms_adamw"), ("spectral", "original")])
def test_muon_with_products_in_bfloat16_is_torchs(name: str, scale: str, theirs: str) -> None:
    ours, reference = weights(), weights()[name]
    torchs = torch.optim.Muon([reference], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn=theirs)
    optimiser = made("muon", products="bfloat16", scale=scale)
    for step in range(5):
        run(optimiser, ours, range(step, step + 1))
        gradients = weights()
        set_gradients(gradients, step)
        reference.grad = gradients[name].grad
        torchs.param_groups[0]["lr"] = 0.01 * (step + 1)
        torchs.step()
    assert (ours[name] - reference).abs().max() <= 1e-6


def test_muon_leaves_tables_head_router_and_norms_to_adamw() -> None:
    ours, theirs = weights(), weights()
    run(made("muon"), ours, range(4))
    run(made("adamw"), theirs, range(4))
    same = {name for name in ours if torch.equal(ours[name], theirs[name])}
    assert same == {"embed", "router", "norm", "head"}


def test_an_expert_that_no_token_went_to_does_not_move_but_for_decay() -> None:
    parameters = weights()
    before = parameters["experts"].detach().clone()
    set_gradients(parameters, 0)
    parameters["experts"].grad[1] = 0
    made("muon").step(parameters, 0.01)
    assert torch.allclose(parameters["experts"][1], before[1] * (1 - 0.001), rtol=1e-6, atol=0)


def test_orthogonal_brings_singular_values_near_one() -> None:
    update = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonal(update))
    assert values.min() > 0.6 and values.max() < 1.3
    assert not orthogonal(torch.zeros(3, 5)).any()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_optimiser_goes_on_bit_for_bit(name: str) -> None:
    whole, halves = weights(), weights()
    run(made(name), whole, range(6))
    first = made(name)
    run(first, halves, range(3))
    kept = {key: tensor.clone() for key, tensor in first.state().items()}
    second = made(name)
    second.restore(kept)
    run(second, halves, range(3, 6))
    assert all(torch.equal(whole[each], halves[each]) for each in whole)
    assert kept.keys() == second.state().keys() and not torch.equal(kept["norm.first"], second.state()["norm.first"])


def test_a_weight_without_a_gradient_stays_as_it_is() -> None:
    parameters = weights()
    before = parameters["tall"].detach().clone()
    optimiser = made("adamw")
    set_gradients(parameters, 0)
    parameters["tall"].grad = None
    optimiser.step(parameters, 0.1)
    assert torch.equal(parameters["tall"], before) and "tall.first" not in optimiser.state()


def test_a_state_of_something_else_is_refused_by_name() -> None:
    muon, adamw = made("muon"), made("adamw")
    run(muon, weights(), range(1))
    with pytest.raises(FileProblem, match=r"tall\.momentum"):
        adamw.restore(muon.state())
    adamw.restore({})
    run(adamw, weights(), range(1))
    state = adamw.state()
    with pytest.raises(FileProblem, match="belong together"):
        made("adamw").restore({key: value for key, value in state.items() if key != "tall.second"})
    other = made("adamw")
    other.restore({**state, "tall.first": torch.zeros(2, 2)})
    with pytest.raises(FileProblem, match=r"tall is torch.float32 \[2, 2\]; the weight needs torch.float32 \[24, 8\]"):
        run(other, weights(), range(1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"scale": "rms"}, "match_rms"),
        ({"products": "bf16"}, "did you mean 'bfloat16'|float32"),
        ({"decayed": ("matrices",)}, "did you mean 'matrix'"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"eps": float("inf")}, "eps is inf"),
        ({"iterations": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        OptimiserSettings(**changes)


def test_kinds_come_from_the_models_own_list_and_adapters_are_matrices() -> None:
    kinds = kinds_of(tiny_llama4(), ["embed", "layers.1.experts.down", "layers.1.router", "layers.0.attention_norm", "head"])
    assert list(kinds.values()) == [Kind.EMBEDDING, Kind.EXPERTS, Kind.ROUTER, Kind.NORM, Kind.HEAD]
    adapters = kinds_of(tiny_llama(), ["layers.0.ffn.down.down", "layers.0.ffn.down.up", "layers.0.ffn.down", "layers.0.ffn.up.magnitude"])
    assert list(adapters.values()) == [Kind.MATRIX, Kind.MATRIX, Kind.MATRIX, Kind.GATE]
    with pytest.raises(UsageError, match=r"layers\.0\.ffn\.dwn is no weight"):
        kinds_of(tiny_llama(), ["layers.0.ffn.dwn"])
