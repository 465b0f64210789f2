"""Llama 4 as a Hugging Face folder, in Meta's layout and, its text, as a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from herd.checkpoints import meta_llama4_params, meta_params, names
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.gguf_llama4 import NAMES as GGUF
from herd.checkpoints.huggingface_llama4 import CHUNKED, FULL
from herd.checkpoints.huggingface_llama4 import NAMES as WITH_VISION
from herd.checkpoints.meta_llama4 import EXPERTS, PLAIN, in_text, in_vision
from herd.checkpoints.sources import Joined, Reshaped, Source, Transposed
from herd.convert.llama_layouts import gguf_tensors, rope_scaling
from herd.convert.shaping import Shaping
from herd.convert.streams import Output, in_format
from herd.dtypes import F32
from herd.errors import UsageError
from herd.models.llama4 import Llama4Config
from herd.models.llama4_vision import Llama4VisionConfig

PICTURE_ENDS = {"boi_token_index": 200080, "eoi_token_index": 200081}


def huggingface_config(cfg: Llama4Config) -> dict[str, Any]:
    """config.json, but for tokens and number format: `llama4` with pictures, `llama4_text` without."""
    if cfg.qkv_bias != cfg.out_bias:
        raise UsageError("Hugging Face has biases in all four projections of attention or in none; this model has them in some.")
    text = _text(cfg)
    if cfg.vision is None:
        return {"architectures": ["Llama4ForCausalLM"], **text}
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "image_token_index": cfg.vision.picture_token,
        **PICTURE_ENDS,
        "tie_word_embeddings": cfg.tied_embeddings,
        "text_config": text,
        "vision_config": _vision(cfg.vision),
    }


def _text(cfg: Llama4Config) -> dict[str, Any]:
    layers = range(cfg.num_layers)
    return {
        "model_type": "llama4_text",
        "hidden_act": "silu",
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "intermediate_size": cfg.expert_width,
        "intermediate_size_mlp": cfg.ffn_width,
        "num_local_experts": cfg.num_experts,
        "num_experts_per_tok": cfg.num_chosen,
        "moe_layers": list(cfg.expert_layers),
        "no_rope_layers": [int(layer in cfg.rotary_layers) for layer in layers],
        "layer_types": [CHUNKED if layer in cfg.chunked_layers else FULL for layer in layers],
        "attention_chunk_size": cfg.chunk,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta,
        "rope_scaling": rope_scaling(cfg.rope),
        "use_qk_norm": cfg.qk_norm,
        "attn_temperature_tuning": bool(cfg.temper_scale),
        "floor_scale": int(cfg.temper_floor) if cfg.temper_floor.is_integer() else cfg.temper_floor,
        **({"attn_scale": cfg.temper_scale} if cfg.temper_scale else {}),
        "tie_word_embeddings": cfg.tied_embeddings,
        "attention_bias": cfg.qkv_bias,
    }


def _vision(cfg: Llama4VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "llama4_vision_model",
        "hidden_act": "gelu",
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.ffn_width,
        "image_size": cfg.tile,
        "patch_size": cfg.patch,
        "num_channels": 3,
        "pixel_shuffle_ratio": 1 / cfg.merge,
        "projector_input_dim": cfg.adapter_width,
        "projector_output_dim": cfg.adapter_width,
        "vision_output_dim": cfg.adapter_width,
        "rope_theta": cfg.rope_theta,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "multi_modal_projector_bias": False,
    }


def huggingface_outputs(checkpoint: Checkpoint, shaping: Shaping) -> list[Output]:
    """All tensors by their names there. Experts are laid out for x W, gate and up side by side."""
    table = names.HUGGING_FACE_LLAMA4 if checkpoint.config.vision is None else WITH_VISION
    sources = {spec.name: shaping.plain(checkpoint, spec) for spec in checkpoint.specs}
    outputs = []
    for name, source in sources.items():
        layer, _, part = name.rpartition(".experts.")
        if layer and part == "up":
            continue
        if layer and part == "gate":
            name, source = f"{layer}.experts.gate_up", Joined((Transposed(source), Transposed(sources[f"{layer}.experts.up"])), 2)
        elif layer:
            source = Transposed(source)
        elif name == "vision.class":
            source = Reshaped(source, source.shape[1:])
        outputs.append(Output(names.in_file(table, name), _untwisted(source)))
    return outputs


def _untwisted(source: Source) -> Source:
    """What was turned twice is as it was."""
    if isinstance(source, Transposed) and isinstance(source.tensor, Transposed):
        return source.tensor.tensor
    return source


def gguf_outputs(checkpoint: Checkpoint, cfg: Llama4Config, shaping: Shaping) -> tuple[dict[str, Any], list[Output]]:
    """Keys and tensors of the text; the part that sees pictures is a file of its own (`mmproj.py`)."""
    specs = [spec for spec in checkpoint.specs if not spec.name.startswith("vision.")]
    return gguf_tensors(checkpoint, specs, replace(cfg, vision=None), GGUF, shaping)


def meta_params_of(cfg: Llama4Config, notes: list[str]) -> dict[str, Any]:
    """params.json. `notes` get what Meta's own program does not read from it."""
    if cfg.qkv_bias or cfg.out_bias:
        raise UsageError("Meta's layout of Llama 4 has no biases in attention, and this model has; choose hf or gguf.")
    notes += [f"Meta's own program does not learn from params.json {each}." for each in meta_llama4_params.not_said(cfg)]
    return {**meta_llama4_params.params_of(cfg), "herd": meta_params.kept(cfg)}


def meta_outputs(checkpoint: Checkpoint, shaping: Shaping) -> list[Output]:
    """All tensors by their names there, as one shard: queries, keys and values in one, experts one below the other."""
    sources = {spec.name: shaping.plain(checkpoint, spec) for spec in checkpoint.specs}
    outputs = []
    for name, source in sources.items():
        layer, _, part = name.rpartition(".")
        if name in PLAIN:
            outputs.append(Output(PLAIN[name][0], Reshaped(source, source.shape[1:]) if name == "vision.class" else source))
        elif name.startswith("vision.layers."):
            outputs.append(Output(in_vision(name), source))
        elif (layer.endswith(".attention") and part in "kv") or (layer.endswith(".ffn") and part == "up"):
            continue  # written with the first of those that are one tensor there
        elif layer.endswith(".attention") and part == "q":
            outputs.append(Output(f"{layer}.wqkv.weight", _one_below_the_other([sources[f"{layer}.{each}"] for each in "qkv"])))
        elif layer.endswith(".ffn") and part == "gate":
            fused = _one_below_the_other([source, sources[f"{layer}.up"]])
            outputs.append(Output(f"{layer.removesuffix('ffn')}feed_forward.mlp.fc1_weight", fused))
        else:
            outputs.append(_alone(name, source, checkpoint.config))
    if checkpoint.config.tied_embeddings:
        outputs.append(Output(PLAIN["head"][0], sources["embed"]))
    return outputs


def _alone(name: str, source: Source, cfg: Llama4Config) -> Output:
    """A weight of the text's layers that is one tensor there."""
    _, layer, rest = name.split(".", 2)
    at = f"layers.{layer}.feed_forward"
    if rest.startswith("experts."):
        turned = _untwisted(Transposed(source))
        count, height, width = turned.shape
        return Output(f"{at}.experts.{EXPERTS[rest.removeprefix('experts.')][0]}", Reshaped(turned, (count * height, width)))
    if rest == "router":
        return Output(f"{at}.router_DE", _untwisted(Transposed(source)))
    return Output(in_text(name, cfg)[0], source)


def _one_below_the_other(parts: list[Source]) -> Source:
    """Weights of one tensor; those in several formats as float32, which holds them all."""
    if len({part.dtype for part in parts}) > 1:
        parts = [in_format(part, F32) for part in parts]
    return Joined(tuple(parts), 0)
