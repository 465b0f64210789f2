"""Llama 3.2 Vision as a Hugging Face folder and in Meta's layout. GGUF has no architecture for it."""

from __future__ import annotations

from typing import Any

from herd.checkpoints import meta_llama3_vision as meta
from herd.checkpoints import meta_params
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.huggingface_mllama import PLACES, rows_of_a_place, stored_shape
from herd.checkpoints.mllama_names import META_EMBED, in_huggingface, in_meta
from herd.checkpoints.mllama_places import WrittenOut, shapes_of_pictures
from herd.checkpoints.sources import Part, Reshaped, Source
from herd.convert.llama_layouts import halved, rope_scaling
from herd.convert.shaping import Shaping
from herd.convert.streams import Output
from herd.models.encoder_blocks import NORM_EPS
from herd.models.llama3_vision import META_VOCABULARY, Llama3VisionConfig
from herd.models.llama3_vision_encoder import CHANNELS, EncoderConfig
from herd.models.weights import TensorSpec

NO_GGUF = (
    "Llama 3.2 Vision is not written as GGUF: the format has no architecture for it that programs agree on. Choose hf or meta, with "
    "bf16 for half the size of float32."
)
PADDING = 128004
"""The token that the release fills up texts with."""


def huggingface_config(cfg: Llama3VisionConfig) -> dict[str, Any]:
    """config.json, but for tokens and number format, in the spelling of the release."""
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": cfg.picture_id,
        "text_config": _text(cfg),
        "vision_config": _vision(cfg.vision),
    }


def _text(cfg: Llama3VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "mllama_text_model",
        "hidden_act": "silu",
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers + len(cfg.crossing),
        "cross_attention_layers": [layer + before for before, layer in enumerate(cfg.crossing)],
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "intermediate_size": cfg.ffn_width,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta,
        "rope_scaling": rope_scaling(cfg.rope),
        "tie_word_embeddings": False,
        "pad_token_id": PADDING if cfg.vocab_size == META_VOCABULARY else None,
    }


def _vision(cfg: EncoderConfig) -> dict[str, Any]:
    return {
        "model_type": "mllama_vision_model",
        "hidden_act": "gelu",
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_global_layers": cfg.num_global_layers,
        "attention_heads": cfg.num_heads,
        "intermediate_size": cfg.ffn_width,
        "intermediate_layers_indices": list(cfg.kept),
        "vision_output_dim": cfg.num_features,
        "image_size": cfg.tile,
        "patch_size": cfg.patch,
        "num_channels": CHANNELS,
        "max_num_tiles": cfg.max_tiles,
        "supported_aspect_ratios": [list(shape) for shape in shapes_of_pictures(cfg.max_tiles)],
        "norm_eps": NORM_EPS,
    }


def huggingface_outputs(checkpoint: Checkpoint, shaping: Shaping) -> list[Output]:
    """All tensors by their names there; tables of places are written out for each shape of picture."""
    cfg: Llama3VisionConfig = checkpoint.config
    return [Output(in_huggingface(cfg, spec.name), _as_there(cfg, spec, shaping.plain(checkpoint, spec))) for spec in checkpoint.specs]


def _as_there(cfg: Llama3VisionConfig, spec: TensorSpec, source: Source) -> Source:
    if spec.name in PLACES:
        return WrittenOut(source, cfg.vision.max_tiles, rows_of_a_place(cfg, spec.name))
    shape = stored_shape(cfg, spec)
    return halved(source, spec.rotary_heads) if shape == spec.shape else Reshaped(source, shape)


def meta_params_of(cfg: Llama3VisionConfig, notes: list[str]) -> dict[str, Any]:
    """params.json. `notes` get what Meta's own program does not read from it."""
    notes += [f"Meta's own program does not learn from params.json {each}." for each in meta.not_said(cfg)]
    return {**meta.params_of(cfg), "herd": meta_params.kept(cfg)}


def meta_outputs(checkpoint: Checkpoint, shaping: Shaping) -> list[Output]:
    """All tensors by their names there; the embedding is in two."""
    cfg: Llama3VisionConfig = checkpoint.config
    outputs = []
    for spec in checkpoint.specs:
        source, shape = shaping.plain(checkpoint, spec), meta.stored_shape(spec, cfg.vision)
        if spec.name == "embed":
            ends = (0, cfg.vocab_size, cfg.num_embeddings)
            outputs += [Output(META_EMBED[part], Part(source, 0, ends[part], ends[part + 1])) for part in (0, 1)]
        else:
            outputs.append(Output(in_meta(spec.name), source if shape == spec.shape else Reshaped(source, shape)))
    return outputs
