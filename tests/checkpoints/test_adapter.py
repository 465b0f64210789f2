"""LoRA adapters in PEFT's layout: the same logits as merged weights, and everything else refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import herd
from herd.checkpoints import names
from herd.checkpoints.adapter import open_adapter
from herd.errors import FileProblem
from herd.models.llama import LlamaConfig, tensors
from herd.models.weights import Adapted, Kind, Matrix
from tiny import dense_f32, random_leaves, tiny_llama
from tiny_files import safetensors_bytes, write_gguf, write_huggingface

CFG = tiny_llama()
RANK, ALPHA = 4, 8.0
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def modules(cfg: LlamaConfig, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Hugging Face's name of every targeted matrix, and its shape."""
    found = {names.in_file(names.HUGGING_FACE, s.name).removesuffix(".weight"): s.shape for s in tensors(cfg) if s.kind is Kind.MATRIX}
    return {name: (shape[0], shape[1]) for name, shape in found.items() if name.rpartition(".")[2] in targets}


def write_adapter(
    folder: Path, targets: tuple[str, ...] = ALL, *, leave_out: str = "", more: dict[str, Any] | None = None, **config: Any
) -> dict[str, Any]:
    """An adapter with random factors; returns update = B A of each module, unscaled."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.05,
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "use_dora": False,
    }
    settings |= config
    (folder / "adapter_config.json").write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))
    random, stored, updates = np.random.default_rng(7), {}, {}
    for module, (rows, columns) in modules(CFG, targets).items():
        a = random.standard_normal((RANK, columns)).astype(np.float32) / np.float32(math.sqrt(columns))
        b = random.standard_normal((rows, RANK)).astype(np.float32) / 10
        updates[module] = b @ a
        stored[f"base_model.model.{module}.lora_A.weight"] = ("F32", a.shape, a.tobytes())
        stored[f"base_model.model.{module}.lora_B.weight"] = ("F32", b.shape, b.tobytes())
    stored = {name: value for name, value in {**stored, **(more or {})}.items() if not leave_out or leave_out not in name}
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(stored))
    return updates


def merged(updates: dict[str, Any], scale: float) -> dict[str, Matrix]:
    """The tiny model with the updates added into its weights; the updates' rows in our order."""
    leaves = random_leaves(CFG)
    for spec in tensors(CFG):
        update = updates.get(names.in_file(names.HUGGING_FACE, spec.name).removesuffix(".weight"))
        if update is None:
            continue
        if spec.rotary_heads:
            update = update.reshape(spec.rotary_heads, 2, -1, spec.shape[1]).swapaxes(1, 2).reshape(spec.shape)
        base = np.asarray(leaves[spec.name].data).view(np.float32)  # type: ignore[union-attr]
        leaves[spec.name] = dense_f32(base + np.float32(scale) * update)
    return leaves


@pytest.mark.parametrize("layout", ["huggingface", "gguf"])
@pytest.mark.parametrize(
    ("targets", "config", "scale"),
    [
        (ALL, {}, ALPHA / RANK),
        (("q_proj", "v_proj"), {"use_rslora": True}, ALPHA / math.sqrt(RANK)),
        (ALL, {"target_modules": "all-linear"}, ALPHA / RANK),
        (("k_proj",), {"lora_alpha": 1}, 1 / RANK),
    ],
)
def test_an_adapter_gives_the_logits_of_merged_weights(
    tmp_path: Path, layout: str, targets: tuple[str, ...], config: dict[str, Any], scale: float
) -> None:
    updates = write_adapter(tmp_path / "adapter", targets, **config)
    write = write_gguf if layout == "gguf" else write_huggingface
    base = write(tmp_path / "base.gguf", CFG, random_leaves(CFG))
    whole = write(tmp_path / "merged.gguf", CFG, merged(updates, scale))
    ids = list(range(3, 40))
    settings: dict[str, Any] = {"backend": "reference", "dtype": "float64"}
    with (
        herd.load(base, adapter=tmp_path / "adapter", **settings) as adapted,
        herd.load(whole, **settings) as expected,
        herd.load(base, **settings) as plain,
    ):
        assert np.allclose(adapted.logits(ids), expected.logits(ids), atol=1e-4)
        assert not np.allclose(adapted.logits(ids), plain.logits(ids), atol=1e-2)


def test_only_targeted_weights_are_adapted(tmp_path: Path) -> None:
    write_adapter(tmp_path, ("q_proj",))
    leaf = open_adapter(tmp_path, CFG).leaf_over(random_leaves(CFG).__getitem__)
    assert isinstance(leaf("layers.0.attention.q"), Adapted)
    assert not isinstance(leaf("layers.0.attention.k"), Adapted) and not isinstance(leaf("embed"), Adapted)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"use_dora": True}, "lora_magnitude_vector [256] is missing"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": 0}, "r is 0"),
        ({"r": "4"}, "r is '4'"),
        ({"r": ...}, "r is missing"),
        ({"lora_alpha": float("nan")}, "NaN"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"target_modules": ["q_proj", "lm_head"]}, "'lm_head', which is no matrix"),
        ({"target_modules": ".*q_proj"}, "target_modules is"),
        ({"target_modules": []}, "target_modules is"),
        ({"surprise": 1}, "surprise"),
        ({"target_modules": ["q_proj"]}, "belongs to none of the target_modules"),
    ],
)
def test_a_configuration_that_means_something_else_is_refused_by_name(tmp_path: Path, config: dict[str, Any], complaint: str) -> None:
    write_adapter(tmp_path, **config)
    with pytest.raises(FileProblem) as caught:
        open_adapter(tmp_path, CFG)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"leave_out": "layers.1.mlp.up_proj.lora_B"}, "layers.1.mlp.up_proj.lora_B.weight [512, 4] is missing"),
        ({"more": {"base_model.model.extra": ("F32", (1,), bytes(4))}}, "base_model.model.extra"),
        (
            {"more": {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", (2, 256), bytes(2048))}},
            "has shape [2, 256]; the model and the rank say [4, 256]",
        ),
        (
            {"more": {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("I8", (4, 256), bytes(1024))}},
            "is stored as I8",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    write_adapter(tmp_path, **changes)
    with pytest.raises(FileProblem) as caught:
        open_adapter(tmp_path, CFG)
    assert complaint in str(caught.value)


def test_an_adapter_for_another_model_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    with pytest.raises(FileProblem, match="cannot be used with this model"):
        open_adapter(tmp_path, tiny_llama(width=128, num_heads=4, num_layers=3))


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"adapter_config\.json"):
        open_adapter(tmp_path, CFG)
