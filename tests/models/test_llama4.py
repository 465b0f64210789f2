"""The released Llama 4s: parameters as published, which layers do what, and sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from herd.dtypes import F16
from herd.models import llama4
from herd.models.architecture import architecture_of
from herd.models.llama4 import Llama4Config, every
from herd.models.llama4_vision import Llama4VisionConfig
from herd.models.ops import Chunks
from herd.models.rope import Llama3, Rope
from herd.models.sizes import buffer_bytes, cache_bytes_per_token, count_parameters
from herd.models.weights import Kind

VISION = Llama4VisionConfig(
    width=1408, num_layers=34, num_heads=16, ffn_width=5632, tile=336, patch=14, merge=2, adapter_width=4096, picture_token=200092
)
SCALED = Rope(500000.0, 128, Llama3(16.0, 1.0, 1.0, 8192))


def released(**facts: Any) -> Llama4Config:
    rotary = tuple(layer for layer in range(48) if layer % 4 != 3)
    common: dict[str, Any] = {
        "width": 5120,
        "num_layers": 48,
        "num_heads": 40,
        "num_kv_heads": 8,
        "head_width": 128,
        "ffn_width": 16384,
        "expert_width": 8192,
        "num_experts": 16,
        "expert_layers": every(1, 48),
        "rotary_layers": rotary,
        "chunked_layers": rotary,
        "chunk": 8192,
        "vocab_size": 202048,
        "context_length": 262144,
        "norm_eps": 1e-5,
        "rope": SCALED,
        "qk_norm": True,
        "temper_scale": 0.1,
        "vision": VISION,
    }
    return Llama4Config(**{**common, **facts})


SCOUT = released()
MAVERICK = released(num_experts=128, expert_layers=every(2, 48), rope=Rope(500000.0, 128), qk_norm=False)
GUARD = released(expert_layers=(), ffn_width=8192, chunk=None)


@pytest.mark.parametrize(
    ("cfg", "text", "together"),
    [(SCOUT, 107_769_861_120, 108_641_793_536), (MAVERICK, 400_711_848_960, 401_583_781_376), (GUARD, 11_129_164_800, 12_001_097_216)],
    ids=["scout", "maverick", "guard 4"],
)
def test_parameters_are_the_published_ones(cfg: Llama4Config, text: int, together: int) -> None:
    assert count_parameters(cfg) == together and count_parameters(replace(cfg, vision=None)) == text
    assert architecture_of(cfg) is llama4


def test_the_vision_part_divides_as_published() -> None:
    counts = {"encoder": 0, "adapter": 0, "projection": 0, "one layer": 0}
    for spec in llama4.tensors(SCOUT):
        if spec.name.startswith("vision."):
            part = spec.name.split(".")[1]
            counts[part if part in counts else "encoder"] += spec.count
            counts["one layer"] += spec.count * spec.name.startswith("vision.layers.0.")
    assert counts == {"encoder": 811_115_008, "adapter": 39_845_888, "projection": 20_971_520, "one layer": 23_807_872}


@pytest.mark.parametrize(("cfg", "active"), [(SCOUT, 17_172_894_720), (MAVERICK, 17_184_691_200)], ids=["scout", "maverick"])
def test_the_parameters_that_a_token_meets_are_the_published_ones(cfg: Llama4Config, active: int) -> None:
    text = replace(cfg, vision=None)
    assert sum(spec.count // (cfg.num_experts if spec.kind is Kind.EXPERTS else 1) for spec in llama4.tensors(text)) == active


def test_every_fourth_layer_is_global_and_every_second_of_maverick_has_experts() -> None:
    without = [layer for layer in range(48) if layer not in SCOUT.rotary_layers]
    assert without == [3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47] and set(without) <= set(MAVERICK.expert_layers)
    assert MAVERICK.expert_layers[:2] == (1, 3) and len(MAVERICK.expert_layers) == 24
    assert (SCOUT.window(0), SCOUT.window(3), GUARD.window(0)) == (Chunks(8192), None, None)


def test_cache_and_buffers_follow_from_the_shapes() -> None:
    assert cache_bytes_per_token(SCOUT, F16) == 2 * 48 * 8 * 128 * 2
    assert buffer_bytes(MAVERICK, 1, 0) == 4 * (2 * 5120 + 3 * 16384)


def test_no_file_keeps_the_halves_of_a_head_apart() -> None:
    assert not any(spec.rotary_heads for spec in llama4.tensors(SCOUT))


def test_weights_are_named_once_and_found_by_the_tree() -> None:
    names = [spec.name for spec in llama4.tensors(SCOUT)]
    asked: list[str] = []
    llama4.weights(SCOUT, lambda name: asked.append(name))  # type: ignore[arg-type, return-value]
    assert len(set(names)) == len(names) and sorted(asked) == sorted(names)
