"""Muse-Glimmer as a Hugging Face folder, its only layout."""

from __future__ import annotations

from typing import Any

from herd.checkpoints import names
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.huggingface_muse_glimmer import NAMES
from herd.convert.llama_layouts import halved
from herd.convert.shaping import Shaping
from herd.convert.streams import Output
from herd.errors import UsageError
from herd.models.muse_glimmer import MuseGlimmerConfig
from herd.models.muse_glimmer_vision import MuseGlimmerVisionConfig

NO_GGUF = "Muse-Glimmer is not written as GGUF: the format has no architecture for it. Choose hf."
NO_META = "Muse-Glimmer has no layout of Meta's own: it was published as a Hugging Face folder. Choose hf."
DEFAULT_WINDOW = 2048


def huggingface_config(cfg: MuseGlimmerConfig) -> dict[str, Any]:
    """config.json, but for tokens and number format."""
    if cfg.vision is None:
        raise UsageError("Hugging Face has no Muse-Glimmer without eyes, and this model has none.")
    return {
        "architectures": ["MuseGlimmerForConditionalGeneration"],
        "model_type": "muse_glimmer",
        "image_token_id": cfg.image_token,
        "video_token_id": cfg.video_token,
        "out_hidden_size": cfg.vision.folded_width,
        "projector_hidden_size": cfg.vision.projector_width,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": cfg.tied_embeddings,
        "text_config": _text(cfg),
        "vision_config": _vision(cfg.vision),
    }


def _text(cfg: MuseGlimmerConfig) -> dict[str, Any]:
    windows = {kind.window for kind in cfg.layers if kind.window is not None} or {DEFAULT_WINDOW}
    if len(windows) > 1:
        raise UsageError(f"Hugging Face has one window for all local layers of a Muse-Glimmer; this model has {sorted(windows)}.")
    return {
        "model_type": "muse_glimmer_text",
        "hidden_activation": "silu",
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "intermediate_size": cfg.ffn_width,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "post_norm_eps": cfg.post_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope.theta},
        "layer_rope_theta": [cfg.rope.theta if kind.has_positions else 0 for kind in cfg.layers],
        "layer_types": ["full_attention" if kind.window is None else "sliding_attention" for kind in cfg.layers],
        "sliding_window": windows.pop(),
        "qk_scale_factor": cfg.query_factor,
        "output_multiplier": cfg.logit_factor,
        "final_logit_softcapping": cfg.logit_cap,
        "tie_word_embeddings": cfg.tied_embeddings,
        "attention_bias": cfg.attention_bias,
    }


def _vision(cfg: MuseGlimmerVisionConfig) -> dict[str, Any]:
    return {
        "model_type": "muse_glimmer_vision",
        "hidden_act": "gelu",
        "hidden_size": cfg.width,
        "num_hidden_layers": len(cfg.is_local),
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_width,
        "layer_types": ["window_attention" if is_local else "full_attention" for is_local in cfg.is_local],
        "patch_size": cfg.patch,
        "patch_temporal": cfg.frames,
        "pos_emb_height": cfg.grid,
        "pos_emb_width": cfg.grid,
        "max_position_embeddings": cfg.grid**2,
        "merge_size": cfg.merge,
        "layer_norm_eps": cfg.norm_eps,
        "rope_parameters": {"rope_type": "axial", "rope_theta": cfg.rope_theta},
    }


def huggingface_outputs(checkpoint: Checkpoint, shaping: Shaping) -> list[Output]:
    """All tensors by their names there, halves of heads apart."""
    return [
        Output(names.in_file(NAMES, spec.name), halved(shaping.plain(checkpoint, spec), spec.rotary_heads)) for spec in checkpoint.specs
    ]
