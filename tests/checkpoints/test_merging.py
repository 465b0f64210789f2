"""Updates upon updates: what is put together is the sum of both, whatever ranks each has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from herd.checkpoints.merging import stacked
from herd.checkpoints.stored import of_values
from herd.models.weights import Update

SHAPES = {"q": (6, 5), "v": (4, 5)}
WIDE = {"q": 2, "v": 3}


def delta(update: Update) -> np.ndarray:
    down, up = (np.asarray(each.data).reshape(each.shape[0], -1).view(np.float32) for each in (update.down, update.up))
    return np.float32(update.scale) * (up @ down)


def updates(ranks: Mapping[str, int], scale: float, seed: int) -> dict[str, Update]:
    random = np.random.default_rng(seed)
    made = {}
    for name, rank in ranks.items():
        down, up = random.standard_normal((rank, SHAPES[name][1])), random.standard_normal((SHAPES[name][0], rank))
        made[name] = Update(of_values(down.astype(np.float32)).leaf, of_values(up.astype(np.float32)).leaf, scale)
    return made


@pytest.mark.parametrize(
    "ranks", [({"q": 2, "v": 2}, {"q": 3, "v": 3}), ({"q": 1, "v": 3}, {"q": 4, "v": 2}), ({"v": 2}, WIDE), (WIDE, {"q": 1})]
)
def test_stacked_updates_are_the_sum_of_both_and_have_one_rank(ranks: tuple[dict[str, int], dict[str, int]]) -> None:
    earlier, later = updates(ranks[0], 2.0, 1), updates(ranks[1], 0.5, 2)
    found = stacked(earlier, later)
    assert found.keys() == earlier.keys() | later.keys()
    assert {each.down.shape[0] for each in found.values()} == {max(ranks[0].values()) + max(ranks[1].values())}
    for name, update in found.items():
        wanted = sum(delta(each[name]) for each in (earlier, later) if name in each)
        assert update.scale == 0.5
        np.testing.assert_allclose(delta(update), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # it imports peft
def test_updates_of_several_ranks_and_scales_add_up_as_in_peft() -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    model = torch.nn.ModuleDict({name: torch.nn.Linear(shape[1], shape[0], bias=False) for name, shape in SHAPES.items()})
    patterns = {"a": ({"q": 2, "v": 3}, {"q": 8}), "b": ({"q": 4, "v": 1}, {"v": 3})}
    sides: dict[str, dict[str, Update]] = {"a": {}, "b": {}}
    wanted: dict[str, np.ndarray] = {}
    made = None
    for adapter, (ranks, alphas) in patterns.items():
        config = peft.LoraConfig(
            target_modules=list(SHAPES), rank_pattern=ranks, alpha_pattern=alphas, lora_alpha=6, init_lora_weights=False
        )
        made = peft.PeftModel(model, config, adapter) if made is None else made
        if adapter not in made.peft_config:
            made.add_adapter(adapter, config)
    for name in SHAPES:
        layer = made.base_model.model[name]
        for adapter, side in sides.items():
            down, up = (which[adapter].weight.detach().numpy() for which in (layer.lora_A, layer.lora_B))
            side[name] = Update(of_values(down).leaf, of_values(up).leaf, layer.scaling[adapter])
        wanted[name] = sum(layer.get_delta_weight(adapter).detach().numpy() for adapter in sides)
    assert {each.down.shape[0] for each in sides["a"].values()} == {2, 3}
    for name, update in stacked(sides["a"], sides["b"]).items():
        np.testing.assert_allclose(delta(update), wanted[name], rtol=1e-5, atol=1e-5)
