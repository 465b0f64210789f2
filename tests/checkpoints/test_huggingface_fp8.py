"""FP8 folders as they are described: 3.1 405B's by fbgemm_fp8, Maverick's with a module for each expert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.checkpoints import open_checkpoint
from herd.dtypes import BF16, F32
from herd.errors import FileProblem
from meta_files import values_of
from tiny import random_leaves, tiny_llama
from tiny_files import safetensors_bytes, write_huggingface

CFG = tiny_llama(width=32, num_layers=3, num_heads=4, num_kv_heads=2, head_width=8, ffn_width=64, vocab_size=40)
FBGEMM = {
    "quant_method": "fbgemm_fp8",
    "activation_scale_ub": 1200.0,
    "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"],
}
GROUP = {"weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}, "targets": ["Linear"]}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": GROUP}, "ignore": ["lm_head"]}
PARTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def stored_tensors(path: Path) -> dict[str, Any]:
    import safetensors

    return {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in safetensors.deserialize(path.read_bytes())
    }


def quantised(values: Any) -> tuple[Any, Any, Any]:
    """e4m3 bytes, scales of rows, and what they stand for."""
    torch = pytest.importorskip("torch")
    weight = torch.from_numpy(np.array(values, np.float32))
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    q = (weight / scale).to(torch.float8_e4m3fn)
    return q.view(torch.uint8).numpy().tobytes(), scale.numpy().tobytes(), (q.float() * scale).numpy()


def write(folder: Path, config: dict[str, Any], change: Any = lambda _: None) -> dict[str, Any]:
    """The model with e4m3 feed-forwards in its middle layer; what they should be, by our names."""
    leaves = random_leaves(CFG, 1, BF16)
    write_huggingface(folder, CFG, leaves, {"quantization_config": config})
    tensors = stored_tensors(folder / "model.safetensors")
    expected = {}
    for theirs, ours in PARTS.items():
        name = f"model.layers.1.mlp.{theirs}.weight"
        leaf = leaves[f"layers.1.ffn.{ours}"]
        q, scale, expected[f"layers.1.ffn.{ours}"] = quantised(values_of(leaf))
        tensors[name] = ("F8_E4M3", leaf.shape, q)
        tensors[f"{name}_scale"] = ("F32", (leaf.shape[0], 1), scale)
        tensors[name.replace(".weight", ".input_scale_ub")] = ("F32", (1,), np.float32(1200).tobytes())
    change(tensors)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return expected


@pytest.mark.parametrize("config", [FBGEMM, COMPRESSED], ids=["fbgemm", "compressed-tensors"])
def test_fp8_matrices_are_read_with_their_scales(tmp_path: Path, config: dict[str, Any]) -> None:
    expected = write(tmp_path, config)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dtype("layers.1.ffn.up") is F32 and checkpoint.dtype("layers.0.ffn.up") is BF16
    for name, values in expected.items():
        assert np.array_equal(values_of(checkpoint.leaf(name)), values), name


def _without_scale(tensors: dict[str, Any]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]


def _short_scale(tensors: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight_scale"] = ("F32", (63, 1), bytes(63 * 4))


def _stray_scale(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = ("F32", (64, 1), bytes(64 * 4))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (FBGEMM, _without_scale, r"has no 'model\.layers\.1\.mlp\.up_proj\.weight_scale'"),
        (FBGEMM, _short_scale, "one scale for each of 64 rows is expected"),
        (FBGEMM, _stray_scale, r"'model\.layers\.0\.mlp\.up_proj\.weight_scale' \[64, 1\] belongs to no part"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None, "quant_method is 'bitsandbytes', which is not read"),
        ({"quant_method": "gptq"}, None, "quant_method is 'gptq'"),
        (7, None, "quantization_config is 7"),
        ({**COMPRESSED, "format": "pack-quantized"}, None, r"quantization_config\.format is 'pack-quantized'"),
        ({**COMPRESSED, "kv_cache_scheme": {"num_bits": 8}}, None, "kv_cache_scheme"),
        ({**COMPRESSED, "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}}, None, r"config_groups\.g\.weights is"),
        ({**FBGEMM, "odd": 1}, None, "odd is not a key"),
    ],
)
def test_other_quantised_folders_are_refused_by_name(tmp_path: Path, config: Any, change: Any, message: str) -> None:
    write(tmp_path, config, change or (lambda _: None))
    with pytest.raises(FileProblem, match=message):
        open_checkpoint(tmp_path)


def test_unquantised_folders_have_no_fp8(tmp_path: Path) -> None:
    write(tmp_path, FBGEMM)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in values.items() if key != "quantization_config"}))
    with pytest.raises(FileProblem, match=r"up_proj\.weight' is stored as F8_E4M3"):
        open_checkpoint(tmp_path)


def maverick(folder: Path, change: Any = lambda _: None) -> dict[str, Any]:
    """A small Llama 4 by transformers, its experts un-fused and quantised; what gate, up and down of them should be."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, intermediate_size_mlp=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=3, interleave_moe_layer_step=2, pad_token_id=0, max_position_embeddings=64,
        attention_chunk_size=16,
    )  # fmt: skip
    transformers.Llama4ForCausalLM(config).save_pretrained(folder)
    tensors = stored_tensors(folder / "model.safetensors")
    at, expected = "model.layers.1.feed_forward.experts", {}
    fused = {name: np.frombuffer(tensors.pop(f"{at}.{name}")[2], np.float32) for name in ("gate_up_proj", "down_proj")}
    gate_up, down = fused["gate_up_proj"].reshape(3, 32, 96), fused["down_proj"].reshape(3, 48, 32)
    whole = {"gate_proj": gate_up[:, :, :48], "up_proj": gate_up[:, :, 48:], "down_proj": down}
    for part, values in whole.items():
        stack = []
        for number in range(3):
            matrix = np.ascontiguousarray(values[number].T)
            q, scale, meant = quantised(matrix)
            tensors[f"{at}.{number}.{part}.weight"] = ("F8_E4M3", matrix.shape, q)
            tensors[f"{at}.{number}.{part}.weight_scale"] = ("F32", (len(matrix), 1), scale)
            stack.append(meant)
        expected[PARTS[part]] = np.stack(stack)
    change(tensors)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    values_ = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values_, "quantization_config": COMPRESSED}))
    return expected


def test_experts_with_modules_of_their_own_are_stacked(tmp_path: Path) -> None:
    expected = maverick(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for part, values in expected.items():
        leaf = checkpoint.leaf(f"layers.1.experts.{part}")
        assert np.array_equal(values_of(leaf), values), part


def test_an_expert_that_is_missing_is_refused(tmp_path: Path) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        for ending in ("weight", "weight_scale"):
            del tensors[f"model.layers.1.feed_forward.experts.1.up_proj.{ending}"]

    maverick(tmp_path, drop)
    with pytest.raises(FileProblem, match="the experts do not all have gate_proj, up_proj and down_proj"):
        open_checkpoint(tmp_path)
