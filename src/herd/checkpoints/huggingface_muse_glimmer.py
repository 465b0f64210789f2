"""Muse-Glimmer folders in Hugging Face layout: what their keys mean and what their tensors are called.

Source: `transformers` 5.23, `models/muse_glimmer/configuration_muse_glimmer.py`. No published folder could be seen here
(docs/unverified.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.checkpoints.huggingface_config import CONCLUSION, HARMLESS
from herd.models.muse_glimmer import LayerKind, MuseGlimmerConfig
from herd.models.muse_glimmer_vision import MuseGlimmerVisionConfig
from herd.models.rope import Rope

_LAYER = "model.language_model.layers.{}."
_EYE = "model.vision_tower.layers.{}."
NAMES = {
    "embed": "model.language_model.embed_tokens.weight",
    "norm": "model.language_model.norm.weight",
    "head": "lm_head.weight",
    "layers.{}.attention_norm": _LAYER + "input_layernorm.weight",
    "layers.{}.after_attention_norm": _LAYER + "post_attention_layernorm.weight",
    "layers.{}.ffn_norm": _LAYER + "pre_feedforward_layernorm.weight",
    "layers.{}.after_ffn_norm": _LAYER + "post_feedforward_layernorm.weight",
    "layers.{}.attention.q": _LAYER + "self_attn.q_proj.weight",
    "layers.{}.attention.k": _LAYER + "self_attn.k_proj.weight",
    "layers.{}.attention.v": _LAYER + "self_attn.v_proj.weight",
    "layers.{}.attention.gate": _LAYER + "self_attn.gate_proj.weight",
    "layers.{}.attention.out": _LAYER + "self_attn.o_proj.weight",
    "layers.{}.attention.q_bias": _LAYER + "self_attn.q_proj.bias",
    "layers.{}.attention.k_bias": _LAYER + "self_attn.k_proj.bias",
    "layers.{}.attention.v_bias": _LAYER + "self_attn.v_proj.bias",
    "layers.{}.attention.out_bias": _LAYER + "self_attn.o_proj.bias",
    "layers.{}.ffn.gate": _LAYER + "mlp.gate_proj.weight",
    "layers.{}.ffn.up": _LAYER + "mlp.up_proj.weight",
    "layers.{}.ffn.down": _LAYER + "mlp.down_proj.weight",
    "vision.patch": "model.vision_tower.patch_embedder.patch_embedding.weight",
    "vision.positions": "model.vision_tower.patch_embedder.position_embedding_table.weight",
    "vision.norm_before": "model.vision_tower.ln_pre.weight",
    "vision.norm_before_bias": "model.vision_tower.ln_pre.bias",
    "vision.norm_after": "model.vision_tower.ln_post.weight",
    "vision.norm_after_bias": "model.vision_tower.ln_post.bias",
    "vision.layers.{}.attention_norm": _EYE + "norm1.weight",
    "vision.layers.{}.attention_norm_bias": _EYE + "norm1.bias",
    "vision.layers.{}.ffn_norm": _EYE + "norm2.weight",
    "vision.layers.{}.ffn_norm_bias": _EYE + "norm2.bias",
    "vision.layers.{}.attention.q": _EYE + "attn.q_proj.weight",
    "vision.layers.{}.attention.q_bias": _EYE + "attn.q_proj.bias",
    "vision.layers.{}.attention.k": _EYE + "attn.k_proj.weight",
    "vision.layers.{}.attention.k_bias": _EYE + "attn.k_proj.bias",
    "vision.layers.{}.attention.v": _EYE + "attn.v_proj.weight",
    "vision.layers.{}.attention.v_bias": _EYE + "attn.v_proj.bias",
    "vision.layers.{}.attention.out": _EYE + "attn.proj.weight",
    "vision.layers.{}.attention.out_bias": _EYE + "attn.proj.bias",
    "vision.layers.{}.ffn.up": _EYE + "mlp.fc1.weight",
    "vision.layers.{}.ffn.up_bias": _EYE + "mlp.fc1.bias",
    "vision.layers.{}.ffn.down": _EYE + "mlp.fc2.weight",
    "vision.layers.{}.ffn.down_bias": _EYE + "mlp.fc2.bias",
    "vision.adapter_in": "model.vision_adapter.fc1.weight",
    "vision.adapter_out": "model.vision_adapter.fc2.weight",
    "vision.projection": "model.vision_projection.weight",
}
VISION_HARMLESS = HARMLESS | {"max_position_embeddings": "the table of positions has pos_emb_height x pos_emb_width entries"}


def read_config(values: Mapping[str, Any], where: str, facts: dict[str, Fact]) -> MuseGlimmerConfig:
    """The config; `facts` collects where each number came from. One `FileProblem` for all that is wrong."""
    r = ConfigReader(values, where, facts)
    r.expect("model_type", "muse_glimmer", because="this is the reader of Muse-Glimmer")
    r.expect("architectures", ["MuseGlimmerForConditionalGeneration"], because="other heads are no language models")
    r.expect("projector_hidden_act", "gelu", because="the adapter's activation is GELU")
    facts["architecture"] = Fact("muse_glimmer", f"model_type in {where}")
    text, eyes = _inner(r, "text_config"), _inner(r, "vision_config")
    cfg = _text(text, r, _vision(eyes, r))
    text.settle(HARMLESS)
    eyes.settle(VISION_HARMLESS)
    r.finish(CONCLUSION, HARMLESS)
    return cfg


def _inner(r: ConfigReader, key: str) -> ConfigReader:
    values = r.raw(key)
    if not isinstance(values, dict):
        r.problem(f"{key} is {shown(values)}; it must be an object")
        values = {}
    return r.within(key, values)


def _text(r: ConfigReader, outer: ConfigReader, vision: MuseGlimmerVisionConfig) -> MuseGlimmerConfig:
    r.expect("model_type", "muse_glimmer_text", because="the text part of a Muse-Glimmer is expected")
    r.expect("hidden_activation", "silu", because="the feed-forward is gated with SiLU")
    num_layers = r.integer("num_hidden_layers", "num_layers", highest=MAX_LAYERS)
    head_width = r.integer("head_dim", "head_width", highest=MAX_WIDTH, default=128)
    rope = _rope(r, head_width)
    tied = r.boolean("tie_word_embeddings", "tied_embeddings", default=False)
    outer.expect("tie_word_embeddings", tied, because="text_config says so")
    return MuseGlimmerConfig(
        width=r.integer("hidden_size", "width", highest=MAX_WIDTH),
        num_heads=r.integer("num_attention_heads", "num_heads", highest=MAX_HEADS),
        num_kv_heads=r.integer("num_key_value_heads", "num_kv_heads", highest=MAX_HEADS),
        head_width=head_width,
        ffn_width=r.integer("intermediate_size", "ffn_width", highest=MAX_VOCABULARY),
        vocab_size=r.integer("vocab_size", "vocab_size", highest=MAX_VOCABULARY),
        context_length=r.integer("max_position_embeddings", "context_length", highest=MAX_CONTEXT, default=131072),
        norm_eps=r.number("rms_norm_eps", "norm_eps", lowest=1e-12, highest=0.1, default=1e-5),
        post_norm_eps=r.number("post_norm_eps", "post_norm_eps", lowest=1e-14, highest=0.1, default=1e-8),
        rope=rope,
        layers=_layers(r, num_layers, rope),
        query_factor=r.number("qk_scale_factor", "query_factor", lowest=1e-6, highest=1e6, default=3.87),
        logit_factor=r.number("output_multiplier", "logit_factor", lowest=1e-6, highest=1e6, default=0.19611613513818404),
        logit_cap=r.number("final_logit_softcapping", "logit_cap", lowest=1e-6, highest=1e6, default=20.0),
        tied_embeddings=tied,
        attention_bias=r.boolean("attention_bias", "attention_bias", default=False),
        image_token=outer.integer("image_token_id", "image_token", lowest=0, highest=MAX_VOCABULARY, default=200092),
        video_token=outer.integer("video_token_id", "video_token", lowest=0, highest=MAX_VOCABULARY, default=200091),
        vision=vision,
    )


def _rope(r: ConfigReader, head_width: int) -> Rope:
    values = r.raw("rope_parameters")
    if not isinstance(values, dict):
        r.problem(f"text_config.rope_parameters is {shown(values)}; it must be an object with rope_theta")
        return Rope(10000.0, head_width)
    inner = r.within("rope_parameters", values)
    inner.expect("rope_type", "default", because="Muse-Glimmer's frequencies are not stretched")
    theta = inner.number("rope_theta", "rope_theta", lowest=1.0, highest=1e15)
    inner.settle()
    return Rope(theta, head_width)


def _layers(r: ConfigReader, num_layers: int, rope: Rope) -> tuple[LayerKind, ...]:
    """Which layers are local, and which have positions: as listed, or every fourth one, counted from the last, sees everything
    and has none."""
    window = r.integer("sliding_window", "window", highest=MAX_CONTEXT, default=2048)
    is_global = [(num_layers - 1 - index) % 4 == 0 for index in range(num_layers)]
    kinds = r.raw("layer_types") or ["full_attention" if each else "sliding_attention" for each in is_global]
    thetas = r.raw("layer_rope_theta") or [0 if each else rope.theta for each in is_global]
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in known for kind in kinds):
        r.problem(f"text_config.layer_types is {shown(kinds)}; it must say full_attention or sliding_attention for {num_layers} layers")
        return ()
    if not isinstance(thetas, list) or len(thetas) != num_layers or any(theta not in (0, rope.theta) for theta in thetas):
        r.problem(f"text_config.layer_rope_theta is {shown(thetas)}; it must be 0 or rope_theta, {rope.theta:g}, for {num_layers} layers")
        return ()
    return tuple(LayerKind(known[kind], bool(theta)) for kind, theta in zip(kinds, thetas, strict=True))


def _vision(r: ConfigReader, outer: ConfigReader) -> MuseGlimmerVisionConfig:
    r.expect("model_type", "muse_glimmer_vision", because="the eyes of a Muse-Glimmer are expected")
    r.expect("hidden_act", "gelu", because="the encoder's activation is GELU")
    side, other = (r.integer(key, highest=4096, default=32) for key in ("pos_emb_height", "pos_emb_width"))
    if side != other:
        r.problem(f"vision_config.pos_emb_height is {side} and pos_emb_width {other}; the table of positions must be square")
    num_layers = r.integer("num_hidden_layers", "vision_layers", highest=MAX_LAYERS, default=50)
    width = r.integer("hidden_size", "vision_width", highest=MAX_WIDTH, default=1536)
    merge = r.integer("merge_size", highest=64, default=2)
    heads = r.integer("num_attention_heads", "vision_heads", highest=MAX_HEADS, default=16)
    if width % heads or width // heads % 4:
        r.problem(f"vision_config.hidden_size is {width} for {heads} heads; a head must be a multiple of 4 wide")
    kinds = r.raw("layer_types") or [
        "full_attention" if (index + 1) % 4 == 0 or index == num_layers - 1 else "window_attention" for index in range(num_layers)
    ]
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in ("full_attention", "window_attention") for kind in kinds):
        r.problem(f"vision_config.layer_types is {shown(kinds)}; it must say full_attention or window_attention for {num_layers} layers")
        kinds = []
    outer.expect("out_hidden_size", width * merge**2, because="it is the encoder's width times merge_size squared")
    return MuseGlimmerVisionConfig(
        width=width,
        num_heads=heads,
        mlp_width=r.integer("intermediate_size", "vision_mlp_width", highest=MAX_VOCABULARY, default=8960),
        is_local=tuple(kind == "window_attention" for kind in kinds),
        patch=r.integer("patch_size", "patch", highest=1024, default=14),
        frames=r.integer("patch_temporal", highest=64, default=2),
        grid=side,
        merge=merge,
        norm_eps=r.number("layer_norm_eps", lowest=1e-12, highest=0.1, default=1e-5),
        rope_theta=_vision_theta(r),
        projector_width=outer.integer("projector_hidden_size", highest=MAX_WIDTH, default=4096),
    )


def _vision_theta(r: ConfigReader) -> float:
    values: Mapping[str, Any] = r.raw("rope_parameters") or {}
    inner = r.within("rope_parameters", values if isinstance(values, dict) else {})
    inner.expect("rope_type", "axial", because="a picture has two axes")
    theta = inner.number("rope_theta", lowest=1.0, highest=1e15, default=10000.0)
    inner.settle()
    return theta
