"""Llama 4 in Meta's layout, cut into shards as it is published: Meta's own code puts the same model together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.checkpoints import open_checkpoint
from herd.checkpoints.meta_llama4 import EXPERTS, PATCH_TOKEN, PLAIN, SHARED, VISION, VISION_LAYER
from herd.dtypes import F32
from herd.errors import FileProblem
from herd.models.llama4 import Llama4Config, every
from herd.models.rope import Llama3, Rope
from meta_files import values_of
from tiny import random_leaves, tiny_llama4, tiny_llama4_vision

RELEASES = {
    "Scout": {"expert_layers": (0, 1, 2, 3), "rope": Rope(500000.0, 16, Llama3(16.0, 1.0, 1.0, 8192)), "context_length": 10485760},
    "Maverick": {"expert_layers": every(2, 4), "rope": Rope(500000.0, 16), "context_length": 1048576, "qk_norm": False},
    "Guard 4": {"expert_layers": (), "num_experts": 1, "rope": Rope(500000.0, 16), "context_length": 1048576, "chunk": None},
}


def config(release: str, vision: bool = True) -> Llama4Config:
    """A small model with what is special in a release. Its widths are such that Meta's rule gives them too."""
    facts: dict[str, Any] = {"width": 64, "num_heads": 4, "num_kv_heads": 2, "head_width": 16, "expert_width": 128, "ffn_width": 224}
    facts |= {"num_experts": 4, "vocab_size": 320, **RELEASES[release]}
    has_experts, has_plain = bool(facts["expert_layers"]), len(facts["expert_layers"]) < 4
    facts |= {"expert_width": 128 if has_experts else 1, "ffn_width": 224 if has_plain else 1}
    return tiny_llama4(**facts, vision=tiny_llama4_vision(width=64, ffn_width=256, picture_token=PATCH_TOKEN) if vision else None)


def params_of(cfg: Llama4Config) -> dict[str, Any]:
    params: dict[str, Any] = {
        "dim": cfg.width, "n_layers": cfg.num_layers, "n_heads": cfg.num_heads, "n_kv_heads": cfg.num_kv_heads, "head_dim": cfg.head_width,
        "vocab_size": cfg.vocab_size, "multiple_of": 32, "ffn_dim_multiplier": 1.2, "ffn_exp": 4.0, "norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta, "use_scaled_rope": cfg.rope.scaling is not None, "nope_layer_interval": 4, "use_qk_norm": cfg.qk_norm,
        "attn_temperature_tuning": True, "floor_scale": cfg.temper_floor, "attn_scale": cfg.temper_scale,
    }  # fmt: skip
    if cfg.chunk is not None:
        params["attention_chunk_size"] = cfg.chunk
    if cfg.expert_layers:
        step = cfg.expert_layers[0] + 1
        params["moe_args"] = {"num_experts": 4, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1, "interleave_moe_layer_step": step}
    if cfg.vision is not None:
        vision, side = cfg.vision, {"height": cfg.vision.tile, "width": cfg.vision.tile}
        patch = {"height": vision.patch, "width": vision.patch}
        params["vision_args"] = {"image_size": side, "patch_size": patch, "dim": vision.width, "n_layers": vision.num_layers}
        params["vision_args"] |= {"n_heads": vision.num_heads, "mlp_ratio": vision.ffn_width / vision.width}
        params["vision_args"] |= {"output_dim": vision.adapter_width, "pixel_shuffle_ratio": 1 / vision.merge}
    return params


def shards_of(cfg: Llama4Config, leaves: Any, count: int) -> list[dict[str, Any]]:
    """The tensors of each shard, as the published ones are cut."""
    states: list[dict[str, Any]] = [{} for _ in range(count)]
    values = {name: np.array(values_of(leaf)) for name, leaf in leaves.items()}

    def put(name: str, whole: Any, axis: int | None) -> None:
        for state, piece in zip(states, [whole] * count if axis is None else np.split(whole, count, axis), strict=True):
            state[name] = np.ascontiguousarray(piece)

    for name, (theirs, axis) in PLAIN.items():
        if name in values:
            put(theirs, values[name][0] if name == "vision.class" else values[name], axis)
    for layer in range(cfg.num_layers):
        at = f"layers.{layer}"
        for state, *parts in zip(states, *(np.split(values[f"{at}.attention.{part}"], count) for part in "qkv"), strict=True):
            state[f"{at}.attention.wqkv.weight"] = np.concatenate(parts)
        put(f"{at}.attention.wqkv.layer_norm_weight", values[f"{at}.attention_norm"], None)
        put(f"{at}.attention.wo.weight", values[f"{at}.attention.out"], 1)
        if layer in cfg.expert_layers:
            put(f"{at}.feed_forward.norm.weight", values[f"{at}.ffn_norm"], None)
            put(f"{at}.feed_forward.router_DE", values[f"{at}.router"].T, None)
            for part, (theirs, axis) in SHARED.items():
                put(f"{at}.feed_forward.{theirs}.weight", values[f"{at}.shared.{part}"], axis)
            for part, (theirs, _) in EXPERTS.items():
                turned = values[f"{at}.experts.{part}"].swapaxes(1, 2)
                for state, piece in zip(states, np.split(turned, count, 1 if part == "down" else 2), strict=True):
                    state[f"{at}.feed_forward.experts.{theirs}"] = np.ascontiguousarray(piece).reshape(-1, piece.shape[2])
        else:
            put(f"{at}.feed_forward.mlp.layer_norm_weight", values[f"{at}.ffn_norm"], None)
            halves = [np.split(values[f"{at}.ffn.{part}"], count) for part in ("gate", "up")]
            for state, gate, up in zip(states, *halves, strict=True):
                state[f"{at}.feed_forward.mlp.fc1_weight"] = np.concatenate([gate, up])
            put(f"{at}.feed_forward.mlp.fc2_weight", values[f"{at}.ffn.down"], 1)
    for layer in range(cfg.vision.num_layers if cfg.vision is not None else 0):
        for part, (theirs, axis) in VISION_LAYER.items():
            at = f"{VISION}transformer.resblocks.{layer}.{theirs}"
            put(f"{at}.weight", values[f"vision.layers.{layer}.{part}"], axis)
            put(f"{at}.bias", values[f"vision.layers.{layer}.{part}_bias"], None if axis == 1 else axis)
    return states


def write(folder: Path, cfg: Llama4Config, count: int = 1, edit: Callable[[int, dict[str, Any]], None] = lambda n, s: None) -> Any:
    """The model in `count` shards; its weights."""
    torch = pytest.importorskip("torch")
    folder.mkdir(exist_ok=True)
    leaves = random_leaves(cfg, 1, F32)
    (folder / "params.json").write_text(json.dumps(params_of(cfg)))
    for number, state in enumerate(shards_of(cfg, leaves, count)):
        tensors = {name: torch.from_numpy(values) for name, values in state.items()}
        tensors["layers.0.attention.wqkv._extra_state"] = torch.zeros(3, dtype=torch.uint8) if number else None
        tensors["layers.0.feed_forward.running_gate_stats_3E"] = torch.zeros(3, 4)
        edit(number, tensors)
        torch.save(tensors, folder / f"consolidated.{number:02d}.pth")
    return leaves


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("release", RELEASES)
def test_every_weight_is_put_together(tmp_path: Path, release: str, count: int) -> None:
    cfg = config(release)
    leaves = write(tmp_path, cfg, count)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.config, checkpoint.architecture, checkpoint.layout) == (cfg, "llama4", "meta")
    assert {spec.name for spec in checkpoint.specs} == set(leaves)
    for name, leaf in leaves.items():
        assert np.array_equal(values_of(checkpoint.leaf(name)), values_of(leaf)), name


@pytest.mark.parametrize("release", ["Scout", "Maverick"])
def test_metas_code_puts_the_same_model_together(tmp_path: Path, release: str) -> None:
    """Its resharding of two shards, then its hooks at loading, give the weights that ours are compared with."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("llama_models", reason="Meta's llama_models is not installed (pip install herd-llama[dev])")
    from conformance.meta_llama3_vision import one_device
    from conformance.meta_llama4 import MetaModel, meta

    cfg = config(release, vision=False)
    leaves = write(tmp_path, cfg, 2)
    with one_device():
        from llama_models.checkpoint import convert_moe_weights, reshard_mp
    shards = [torch.load(tmp_path / f"consolidated.{number:02d}.pth", weights_only=True) for number in range(2)]
    kept = [{name: each for name, each in shard.items() if not name.endswith(("_extra_state", "_3E"))} for shard in shards]
    whole = reshard_mp([convert_moe_weights(shard, cfg.num_experts) for shard in kept], size=1, rank=0)
    for name in list(whole):
        if ".experts.moe_" in name:
            whole[name] = whole[name].flatten(0, 1)
    assert meta() is not None
    model = MetaModel(cfg, leaves)._model
    before = {name: values.clone() for name, values in model.state_dict().items()}
    model.load_state_dict({name: values.double() for name, values in whole.items()}, strict=True)
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name]), name


def test_fp8_experts_are_read_with_the_scales_of_their_outputs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    cfg = config("Maverick", vision=False)
    expected: dict[str, list[Any]] = {"gate": [], "up": [], "down": []}

    def edit(number: int, tensors: dict[str, Any]) -> None:
        scales = {}
        for part, (theirs, module) in EXPERTS.items():
            name = f"layers.1.feed_forward.experts.{theirs}"
            turned = tensors[name].unflatten(0, (4, -1)).transpose(1, 2).contiguous()
            scale = turned.abs().amax(dim=2) / 448
            q = (turned / scale[:, :, None]).to(torch.float8_e4m3fn)
            stored = q.view(torch.uint8).transpose(1, 2).reshape(-1, tensors[name].shape[1]).contiguous().view(torch.float8_e4m3fn)
            tensors[name] = torch.nn.Parameter(stored, requires_grad=False)
            scales[f"layers.1.feed_forward.experts.{module}"] = scale
            expected[part].append((q.float() * scale[:, :, None]).numpy())
        torch.save(scales, tmp_path / f"fp8_scales_{number}.pt")

    write(tmp_path, cfg, 2, edit)
    checkpoint = open_checkpoint(tmp_path)
    for part, pieces in expected.items():
        whole = np.concatenate(pieces, axis=2 if part == "down" else 1)
        assert np.array_equal(values_of(checkpoint.leaf(f"layers.1.experts.{part}")), whole), part
    torch.save({}, tmp_path / "fp8_scales_1.pt")
    with pytest.raises(FileProblem, match=r"layers\.1\.feed_forward\.experts\.w1 in fp8_scales_1\.pt is missing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("edit", "changes", "message"),
    [
        (lambda n, s: s.pop("layers.1.feed_forward.router_DE"), {}, r"router_DE \[64, 4\] is missing"),
        (lambda n, s: s.update(odd=s["norm.weight"]), {}, r"'odd' \[64\] belongs to no part of a Llama 4"),
        (lambda n, s: None, {"n_kv_heads": 4}, r"wqkv\.weight has shape"),
        (lambda n, s: None, {"moe_args": {"num_experts": 8}}, r"moe_w_in_eD_F has shape \[256, 128\].*; expected is \[512, 128\]"),
        (lambda n, s: None, {"moe_args": {"num_experts": 4, "odd": 1}}, "moe_args.'odd' is not a key"),
        (lambda n, s: None, {"nope_layer_interval": 0}, "nope_layer_interval is 0"),
        (lambda n, s: None, {"vision_args": 3}, "vision_args is 3"),
        (lambda n, s: None, {"surprise": 1}, "surprise is not a key"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, edit: Any, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, config("Scout", vision=False), 1, edit)
    params = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps({**params, **changes}))
    with pytest.raises(FileProblem, match=message):
        open_checkpoint(tmp_path)
