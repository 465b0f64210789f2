"""Llama 4 as a Hugging Face folder and, its text, as a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

from herd.checkpoints import names
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.gguf_llama4 import NAMES as GGUF
from herd.checkpoints.huggingface_llama4 import CHUNKED, FULL
from herd.checkpoints.huggingface_llama4 import NAMES as WITH_VISION
from herd.checkpoints.sources import Joined, Reshaped, Source, Transposed
from herd.convert.llama_layouts import gguf_tensors, rope_scaling
from herd.convert.shaping import Shaping
from herd.convert.streams import Output
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
    """Keys and tensors of the text. Where there is a vision part, it is left out, and that is said."""
    specs = [spec for spec in checkpoint.specs if not spec.name.startswith("vision.")]
    if cfg.vision is not None:
        shaping.notes.append("A GGUF file of a Llama 4 holds its text; the part that sees pictures was left out.")
    return gguf_tensors(checkpoint, specs, replace(cfg, vision=None), GGUF, shaping)


def no_meta_params(_cfg: Llama4Config, _notes: list[str]) -> NoReturn:
    """Meta's layout of Llama 4 is read only."""
    raise UsageError("Llama 4 is not written in Meta's layout, only read; choose hf or gguf.")


def no_meta_outputs(_checkpoint: Checkpoint, _shaping: Shaping) -> NoReturn:
    """The same."""
    raise UsageError("Llama 4 is not written in Meta's layout, only read; choose hf or gguf.")
