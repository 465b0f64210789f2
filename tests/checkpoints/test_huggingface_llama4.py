"""config.json of Llama 4: as released, in its older spellings, and refused by name where it is not understood."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.checkpoints import names, open_checkpoint
from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.huggingface_llama4 import NAMES, read_config, stored
from herd.errors import FileProblem
from herd.models.llama4 import Llama4Config, tensors
from herd.models.llama4_vision import Llama4VisionConfig
from herd.models.rope import Llama3, Rope
from tiny import random_values, tiny_llama4, tiny_llama4_vision
from tiny_files import safetensors_bytes

# As published in April 2025; hosts have copies with the keys that later versions of transformers write.
SCOUT_TEXT: dict[str, Any] = {
    "_attn_implementation_autoset": True,
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": 4,
    "bos_token_id": 200000,
    "eos_token_id": [200001, 200007, 200008],
    "floor_scale": 8192,
    "for_llm_compressor": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 1,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "max_position_embeddings": 10485760,
    "model_type": "llama4_text",
    "no_rope_layers": [],
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "output_router_logits": False,
    "pad_token_id": 200018,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 202048,
}
VISION: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1408,
    "image_size": 336,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "model_type": "llama4_vision_model",
    "multi_modal_projector_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 34,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_dropout": 0.0,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "rope_theta": 10000,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "vision_output_dim": 4096,
}
SCOUT: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "boi_token_index": 200080,
    "eoi_token_index": 200081,
    "image_token_index": 200092,
    "model_type": "llama4",
    "text_config": SCOUT_TEXT,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0.dev0",
    "vision_config": VISION,
}


def read(changes: dict[str, Any] | None = None, **text: Any) -> Llama4Config:
    """Scout's config with changes to its text part, and to the whole; a value of `...` leaves a key out."""
    values = {**SCOUT, "text_config": _changed(SCOUT_TEXT, text), **(changes or {})}
    return read_config(_changed(values, {}), "config.json", {})


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**values, **changes}.items() if value is not ...}


def refusal(changes: dict[str, Any] | None = None, **text: Any) -> str:
    with pytest.raises(FileProblem) as caught:
        read(changes, **text)
    return str(caught.value)


def test_scout_as_released() -> None:
    facts: dict[str, Fact] = {}
    cfg = read_config(SCOUT, "config.json", facts)
    rotary = tuple(layer for layer in range(48) if layer % 4 != 3)
    assert cfg == Llama4Config(
        width=5120,
        num_layers=48,
        num_heads=40,
        num_kv_heads=8,
        head_width=128,
        ffn_width=16384,
        expert_width=8192,
        num_experts=16,
        expert_layers=tuple(range(48)),
        rotary_layers=rotary,
        chunked_layers=rotary,
        chunk=8192,
        vocab_size=202048,
        context_length=10485760,
        norm_eps=1e-5,
        rope=Rope(500000.0, 128, Llama3(16.0, 1.0, 1.0, 8192)),
        qk_norm=True,
        temper_scale=0.1,
        vision=Llama4VisionConfig(
            width=1408, num_layers=34, num_heads=16, ffn_width=5632, tile=336, patch=14, merge=2, adapter_width=4096, picture_token=200092
        ),
    )
    assert facts["expert_width"] == Fact(8192, "text_config.intermediate_size in config.json")
    assert facts["rope_theta"] == Fact(500000.0, "text_config.rope_theta in config.json")
    assert facts["vision.rope_theta"] == Fact(10000, "vision_config.rope_theta in config.json")
    assert facts["vision.tile"] == Fact(336, "vision_config.image_size in config.json")


def test_maverick_and_guard_4_differ_where_they_should() -> None:
    maverick = read(interleave_moe_layer_step=2, num_local_experts=128, rope_scaling=None, use_qk_norm=False)
    assert maverick.expert_layers == tuple(range(1, 48, 2)) and maverick.rope.scaling is None and not maverick.qk_norm
    guard = read(attention_chunk_size=None, moe_layers=[], intermediate_size_mlp=8192)
    assert guard.chunk is None and guard.expert_layers == () and guard.window(0) is None and guard.ffn_width == 8192


def test_what_is_absent_is_what_transformers_assumes() -> None:
    absent = dict.fromkeys(
        ["attention_chunk_size", "attn_temperature_tuning", "attn_scale", "floor_scale", "no_rope_layers", "use_qk_norm", "head_dim"], ...
    )
    assert read(**absent) == read()
    assert read(head_dim=None, hidden_size=2560).head_width == 64 and read(num_key_value_heads=None).num_kv_heads == 40
    assert read(rope_theta=..., rope_scaling=...).rope == Rope(500000.0, 128)
    assert read({"image_token_index": ...}).vision == read().vision


def test_layers_may_be_listed_one_by_one() -> None:
    marks = [1, 0] * 24
    cfg = read(no_rope_layers=marks, layer_types=["full_attention", "chunked_attention"] * 24, moe_layers=[7, 3])
    assert cfg.rotary_layers == tuple(range(0, 48, 2)) and cfg.chunked_layers == tuple(range(1, 48, 2)) and cfg.expert_layers == (3, 7)
    assert read(no_rope_layers=marks).chunked_layers == cfg.rotary_layers, "those that rotate, unless layer_types says otherwise"
    assert read(no_rope_layer_interval=3).rotary_layers == tuple(layer for layer in range(48) if layer % 3 != 2)


@pytest.mark.parametrize(("value", "scale"), [(True, 0.1), (False, 0.0), (4, 0.1), (0, 0.0)])
def test_temperature_is_on_for_true_and_for_numbers(value: object, scale: float) -> None:
    assert read(attn_temperature_tuning=value).temper_scale == scale


def test_only_the_text_part_says_whether_embeddings_are_tied() -> None:
    """As transformers saves and loads them, whatever stands at the top."""
    assert not read({"tie_word_embeddings": True}).tied_embeddings
    assert read({"tie_word_embeddings": False}, tie_word_embeddings=True).tied_embeddings


def test_text_alone_has_names_without_a_prefix() -> None:
    values = {**SCOUT_TEXT, "architectures": ["Llama4ForCausalLM"], "transformers_version": "5.23.0"}
    assert read_config(values, "config.json", {}).vision is None
    assert names.in_file(names.HUGGING_FACE_LLAMA4, "layers.7.shared.up") == "model.layers.7.feed_forward.shared_expert.up_proj.weight"
    assert names.in_file(NAMES, "vision.layers.3.ffn.up_bias") == "vision_model.model.layers.3.mlp.fc1.bias"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"hidden_act": "gelu"}, "text_config.hidden_act is 'gelu'; allowed is 'silu'"),
        ({"new_trick": 3}, "text_config.new_trick is not a key that is known here (3)"),
        ({"num_experts_per_tok": 17}, "text_config.num_experts_per_tok is 17; allowed is a whole number from 1 to 16"),
        ({"moe_layers": [48]}, "text_config.moe_layers is [48]; allowed is a list of layers from 0 to 47"),
        ({"no_rope_layers": [1, 2]}, "text_config.no_rope_layers is [1, 2]; allowed is a list with 1 or 0 for each of 48 layers"),
        ({"no_rope_layers": False}, "text_config.no_rope_layers is false"),
        ({"layer_types": ["sliding"] * 2}, "allowed is a list with 'chunked_attention' or 'full_attention' for each of 48"),
        ({"attention_chunk_size": 0}, "text_config.attention_chunk_size is 0; allowed is a whole number from 1"),
        ({"attn_temperature_tuning": "yes"}, "text_config.attn_temperature_tuning is 'yes'; allowed is true or false"),
        ({"quantization_config": {}}, "text_config.quantization_config is {}"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "the rotary scaling 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "odd": 1}}, "text_config.rope_scaling.odd is not a key of this kind"),
        ({"model_type": "llama"}, "text_config.model_type is 'llama'; allowed is 'llama4_text'"),
        ({"vocab_size": ...}, "text_config.vocab_size is missing; it must be a whole number"),
    ],
    ids=str,
)
def test_text_that_is_not_understood_is_refused_by_name(text: dict[str, Any], message: str) -> None:
    assert message in refusal(**text)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"hidden_size": 1400}, "vision_config.hidden_size is 1400; a head's width must be a multiple of four"),
        ({"image_size": 340}, "vision_config.image_size is 340; it must be whole patches of 14"),
        ({"image_size": [336, 448]}, "vision_config.image_size is [336, 448]"),
        ({"pixel_shuffle_ratio": 0.4}, "vision_config.pixel_shuffle_ratio is 0.4; allowed is one over a whole number"),
        ({"intermediate_size": 5000}, "vision_config.intermediate_size is 5000; the merged patches that the adapter reads are 5632 wide"),
        ({"projector_input_dim": 2048}, "vision_config.projector_input_dim is 2048 and projector_output_dim is 4096"),
        ({"vision_feature_layer": -2}, "vision_config.vision_feature_layer is -2; allowed is -1"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "vision_config.rope_parameters ask for scaling"),
        ({"odd": 1}, "vision_config.odd is not a key that is known here (1)"),
    ],
    ids=str,
)
def test_vision_that_is_not_understood_is_refused_by_name(vision: dict[str, Any], message: str) -> None:
    assert message in refusal({"vision_config": _changed(VISION, vision)})


def test_the_whole_is_refused_by_name_too() -> None:
    assert "architectures is ['Other']" in refusal({"architectures": ["Other"]})
    assert "text_config is 7; allowed is an object" in refusal({"text_config": 7})
    assert "odd is not a key that is known here" in refusal({"odd": 1})


Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """A small Llama 4 as a folder; changes to its tensors by name (None leaves one out)."""

    def write(changes: dict[str, tuple[int, ...] | None] | None = None) -> Path:
        cfg = tiny_llama4(vision=tiny_llama4_vision(width=64, ffn_width=256, num_layers=1), num_layers=2, rotary_layers=(0,))
        found: dict[str, Any] = {}
        for spec in (there for ours in tensors(cfg) for there in stored(ours)):
            found[names.in_file(NAMES, spec.name)] = ("F32", spec.shape, random_values(spec).tobytes())
        for name, shape in (changes or {}).items():
            found.pop(name, None)
            if shape is not None:
                found[name] = ("F32", shape, np.zeros(shape, np.float32).tobytes())
        text = {**SCOUT_TEXT, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2}
        text |= {"head_dim": 32, "intermediate_size": 256, "intermediate_size_mlp": 512, "num_local_experts": 4, "vocab_size": 320}
        text |= {"interleave_moe_layer_step": 2, "no_rope_layers": [1, 0], "bos_token_id": 1, "eos_token_id": 2}
        vision = {**VISION, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 256}
        vision |= {"image_size": 64, "patch_size": 16, "projector_input_dim": 256, "projector_output_dim": 256, "vision_output_dim": 256}
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**SCOUT, "text_config": text, "vision_config": vision, "image_token_index": 319}))
        (folder / "model.safetensors").write_bytes(safetensors_bytes(found))
        return folder

    return write


def test_pieces_of_fused_experts_are_read_row_by_row(written: Write) -> None:
    checkpoint = open_checkpoint(written())
    assert checkpoint.stop_ids == (2,)
    for name in ("layers.1.experts.gate", "layers.1.experts.up", "layers.1.experts.down", "vision.class"):
        source, leaf = checkpoint.source(name), checkpoint.leaf(name)
        rows = np.asarray(leaf.data)
        assert np.array_equal(source.read(0, len(rows)), rows)
        assert np.array_equal(source.read(len(rows) // 3, len(rows) // 2 + 1), rows[len(rows) // 3 : len(rows) // 2 + 1])
    gate, up = (np.asarray(checkpoint.leaf(f"layers.1.experts.{name}").data).view(np.float32) for name in ("gate", "up"))
    fused = checkpoint.source("layers.1.experts.gate").tensors[0].rows().view(np.float32).reshape(4, 256, 512)
    assert np.array_equal(gate.reshape(4, 256, 256), fused[:, :, :256].swapaxes(1, 2))
    assert np.array_equal(up.reshape(4, 256, 256), fused[:, :, 256:].swapaxes(1, 2))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("language_model.model.layers.1.feed_forward.experts.gate_up_proj", (4, 512, 256), "has shape [4, 512, 256] in model.safetensors"),
        ("language_model.model.layers.1.feed_forward.experts.down_proj", None, "experts.down_proj [4, 256, 256] is missing"),
        (
            "vision_model.class_embedding",
            (1, 64),
            "class_embedding has shape [1, 64] in model.safetensors; the config says [64]",
        ),
        ("model.layers.0.odd", (3,), "'model.layers.0.odd' [3] belongs to no part of this model"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(written: Write, name: str, shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(FileProblem) as caught:
        open_checkpoint(written({name: shape}))
    assert message in str(caught.value)
