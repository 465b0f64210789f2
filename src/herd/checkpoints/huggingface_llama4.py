"""Folders of Llama 4 and Llama Guard 4 in Hugging Face layout: `llama4` (text and vision), and `llama4_text`.

What differs from llama: the feed-forward of plain layers has its own key, `intermediate_size_mlp`, since `intermediate_size` is that
of experts; `no_rope_layers` has a 1 for layers that do rotate; all experts of a layer are two tensors, laid out for x W instead of
x W^T, gate and up side by side in one of them; the halves of a head are not kept apart.

Source: transformers `configuration_llama4.py` and `modeling_llama4.py`, versions 4.51 to 5.23; defaults are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from herd.checkpoints import names
from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.checkpoints.huggingface_config import CONCLUSION, FILE, HARMLESS, LOADING, OUTPUT, TRAINING
from herd.checkpoints.huggingface_rope import read_rope
from herd.checkpoints.sources import Part, Reshaped, Source, Transposed
from herd.models.encoder_blocks import NORM_EPS
from herd.models.llama4 import Llama4Config, every
from herd.models.llama4_vision import Llama4VisionConfig
from herd.models.weights import TensorSpec

NAMES = {name: f"language_model.{theirs}" for name, theirs in names.HUGGING_FACE_LLAMA4.items()} | names.HUGGING_FACE_LLAMA4_VISION
TEXT_HARMLESS = HARMLESS | {
    "cache_implementation": LOADING,
    "for_llm_compressor": LOADING,
    "output_router_logits": OUTPUT,
    "router_aux_loss_coef": TRAINING,
    "router_jitter_noise": TRAINING,
}
VISION_HARMLESS = HARMLESS | {
    "norm_eps": f"the layer norms of both references have {NORM_EPS:g} whatever it says",
    "projector_dropout": TRAINING,
    "vision_feature_select_strategy": "both of its values mean the same here: all patches, without the class row",
}
TOP_HARMLESS = HARMLESS | {
    "tie_word_embeddings": "text_config has it too, and transformers does what that says",
    "boi_token_index": "the chat format knows the tokens around a picture",
    "eoi_token_index": "the chat format knows the tokens around a picture",
}
MAX_EXPERTS = 1 << 14
CHUNK = 8192
CHUNKED, FULL = "chunked_attention", "full_attention"


def read_config(values: Mapping[str, Any], where: str, facts: dict[str, Fact]) -> Llama4Config:
    """The config; `facts` collects where each number came from. One `FileProblem` for all that is wrong."""
    r = ConfigReader(values, where, facts)
    if values.get("model_type") == "llama4_text":
        r.expect("architectures", ["Llama4ForCausalLM"], because="classifiers and other heads are no language models")
        cfg = _text(r, values)
        r.finish(CONCLUSION, TEXT_HARMLESS)
        return cfg
    r.expect("model_type", "llama4", because="this is the reader of Llama 4")
    r.expect("architectures", ["Llama4ForConditionalGeneration"], because="classifiers and other heads are no language models")
    _refuse_foreign(r)
    text, vision = _object(r, "text_config"), _object(r, "vision_config")
    inner = r.within("text_config", text)
    cfg = _text(inner, text)
    inner.settle(TEXT_HARMLESS)
    picture_token = r.integer("image_token_index", "picture_token", lowest=0, highest=MAX_VOCABULARY, default=200092)
    if r.has("vision_config"):
        cfg = replace(cfg, vision=_vision(r.within("vision_config", vision), picture_token))
    r.finish(CONCLUSION, TOP_HARMLESS)
    return cfg


def _object(r: ConfigReader, key: str) -> Mapping[str, Any]:
    value = r.raw(key)
    if value is None or isinstance(value, dict):
        return value or {}
    r.problem(f"{key} is {shown(value)}; allowed is an object")
    return {}


def _refuse_foreign(r: ConfigReader) -> None:
    """Keys that would change the mathematics, at their values that do not."""
    r.expect("quantization_config", because="quantised Hugging Face folders are not read; take the folder in bf16, or a GGUF file")
    r.expect("auto_map", because="code that comes with a model is never run")
    r.expect("is_encoder_decoder", False, because="a llama only decodes")
    r.expect("add_cross_attention", False, because="a llama attends to its own text only")
    r.expect("pruned_heads", {}, because="heads are whole")


def _text(r: ConfigReader, values: Mapping[str, Any]) -> Llama4Config:
    """The language model: `values` are what `r` reads, for keys in which null means something else than absence."""
    r.expect("model_type", "llama4_text", because="the text part of a Llama 4 is expected")
    r.expect("hidden_act", "silu", because="the feed-forward is gated with SiLU")
    _refuse_foreign(r)
    r.facts["architecture"] = Fact("llama4", f"model_type in {FILE}")
    width = r.integer("hidden_size", "width", highest=MAX_WIDTH)
    num_layers = r.integer("num_hidden_layers", "num_layers", highest=MAX_LAYERS)
    num_heads = r.integer("num_attention_heads", "num_heads", highest=MAX_HEADS)
    missing_width = max(1, width // num_heads) if "head_dim" in values else 128
    head_width = r.integer("head_dim", "head_width", highest=MAX_WIDTH, default=missing_width)
    missing_heads = num_heads if "num_key_value_heads" in values else 8
    context_length = r.integer("max_position_embeddings", "context_length", highest=MAX_CONTEXT, default=131072)
    attention_bias = r.boolean("attention_bias", "attention_bias", default=False)
    num_experts = r.integer("num_local_experts", "num_experts", highest=MAX_EXPERTS, default=16)
    rotary = _rotary_layers(r, num_layers)
    return Llama4Config(
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=r.integer("num_key_value_heads", "num_kv_heads", highest=MAX_HEADS, default=missing_heads),
        head_width=head_width,
        ffn_width=r.integer("intermediate_size_mlp", "ffn_width", highest=MAX_VOCABULARY, default=16384),
        expert_width=r.integer("intermediate_size", "expert_width", highest=MAX_VOCABULARY, default=8192),
        num_experts=num_experts,
        num_chosen=r.integer("num_experts_per_tok", "num_chosen", highest=num_experts, default=1),
        expert_layers=_expert_layers(r, num_layers),
        rotary_layers=rotary,
        chunked_layers=_chunked_layers(r, num_layers, rotary),
        chunk=_chunk(r, values),
        vocab_size=r.integer("vocab_size", "vocab_size", highest=MAX_VOCABULARY),
        context_length=context_length,
        norm_eps=r.number("rms_norm_eps", "norm_eps", lowest=1e-12, highest=0.1, default=1e-5),
        rope=read_rope(r, head_width, context_length, default_theta=500000.0),
        qk_norm=r.boolean("use_qk_norm", "qk_norm", default=True),
        temper_floor=r.number("floor_scale", "temper_floor", lowest=1e-3, highest=MAX_CONTEXT, default=8192.0),
        temper_scale=_temper_scale(r),
        tied_embeddings=r.boolean("tie_word_embeddings", "tied_embeddings", default=False),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
    )


def _rotary_layers(r: ConfigReader, num_layers: int) -> tuple[int, ...]:
    """`no_rope_layers` has a 1 for each layer that rotates, a 0 for each that does not; absent or empty: none in the last of
    each `no_rope_layer_interval` layers."""
    interval = r.integer("no_rope_layer_interval", highest=MAX_LAYERS, default=4)
    marks = r.raw("no_rope_layers")
    if not marks and marks in (None, []):
        without = every(interval, num_layers)
        return tuple(layer for layer in range(num_layers) if layer not in without)
    if not isinstance(marks, list) or len(marks) < num_layers or any(mark not in (0, 1) for mark in marks):
        r.problem(f"{r.prefix}no_rope_layers is {shown(marks)}; allowed is a list with 1 or 0 for each of {num_layers} layers")
        return ()
    rotary = tuple(layer for layer in range(num_layers) if marks[layer])
    r.note("rotary_layers", rotary, "no_rope_layers")
    return rotary


def _chunked_layers(r: ConfigReader, num_layers: int, rotary: tuple[int, ...]) -> tuple[int, ...]:
    """`layer_types` names the attention of each layer; absent: those that rotate are chunked."""
    types = r.raw("layer_types")
    if types is None:
        return rotary
    if not isinstance(types, list) or len(types) != num_layers or any(each not in (CHUNKED, FULL) for each in types):
        r.problem(
            f"{r.prefix}layer_types is {shown(types)}; allowed is a list with '{CHUNKED}' or '{FULL}' for each of {num_layers} layers"
        )
        return ()
    return tuple(layer for layer, each in enumerate(types) if each == CHUNKED)


def _expert_layers(r: ConfigReader, num_layers: int) -> tuple[int, ...]:
    """`moe_layers` lists them (an empty list: none); absent: the last of each `interleave_moe_layer_step` layers."""
    step = r.integer("interleave_moe_layer_step", highest=MAX_LAYERS, default=1)
    layers = r.raw("moe_layers")
    if layers is None:
        return every(step, num_layers)
    if not isinstance(layers, list) or any(not isinstance(each, int) or not 0 <= each < num_layers for each in layers):
        r.problem(f"{r.prefix}moe_layers is {shown(layers)}; allowed is a list of layers from 0 to {num_layers - 1}")
        return ()
    r.note("expert_layers", tuple(layers), "moe_layers")
    return tuple(sorted(set(layers)))


def _chunk(r: ConfigReader, values: Mapping[str, Any]) -> int | None:
    """`attention_chunk_size`; null, as in Guard 4: every layer sees everything, as Meta's code has it."""
    if "attention_chunk_size" in values and not r.has("attention_chunk_size"):
        r.raw("attention_chunk_size")
        r.note("chunk", None, "attention_chunk_size")
        return None
    return r.integer("attention_chunk_size", "chunk", highest=MAX_CONTEXT, default=CHUNK)


def _temper_scale(r: ConfigReader) -> float:
    """`attn_temperature_tuning` is true or false; in older files a number, where 0 is false."""
    scale = r.number("attn_scale", "temper_scale", lowest=-1e3, highest=1e3, default=0.1)
    is_on = r.raw("attn_temperature_tuning")
    if is_on is not None and not isinstance(is_on, int):
        r.problem(f"{r.prefix}attn_temperature_tuning is {shown(is_on)}; allowed is true or false, or a whole number for true")
    return scale if is_on is None or is_on else 0.0


def _vision(r: ConfigReader, picture_token: int) -> Llama4VisionConfig:
    r.expect("model_type", "llama4_vision_model", because="the vision part of a Llama 4 is expected")
    r.expect("hidden_act", "gelu", because="the vision part has GELU everywhere")
    r.expect("num_channels", 3, because="pictures have three colours")
    r.expect("multi_modal_projector_bias", False, because="the projection has no bias")
    r.expect("vision_feature_layer", -1, because="the last layer's output is what the text sees")
    _refuse_foreign(r)
    width = r.integer("hidden_size", "vision.width", highest=MAX_WIDTH, default=768)
    adapter_width = r.integer("projector_output_dim", "vision.adapter_width", highest=MAX_WIDTH, default=4096)
    for key, default in (("projector_input_dim", 4096), ("vision_output_dim", 7680)):
        found = r.integer(key, highest=MAX_WIDTH, default=default)
        if found != adapter_width:
            r.problem(f"{r.prefix}{key} is {found} and projector_output_dim is {adapter_width}; the layers between them must fit")
    cfg = Llama4VisionConfig(
        width=width,
        num_layers=r.integer("num_hidden_layers", "vision.num_layers", highest=MAX_LAYERS, default=34),
        num_heads=r.integer("num_attention_heads", "vision.num_heads", highest=MAX_HEADS, default=16),
        ffn_width=r.integer("intermediate_size", "vision.ffn_width", highest=MAX_VOCABULARY, default=5632),
        tile=_side(r, "image_size", "vision.tile", 448),
        patch=_side(r, "patch_size", "vision.patch", 14),
        merge=_merge(r),
        adapter_width=adapter_width,
        picture_token=picture_token,
        rope_theta=_vision_theta(r),
    )
    if cfg.width % (4 * cfg.num_heads):
        r.problem(f"{r.prefix}hidden_size is {width}; a head's width must be a multiple of four to be turned by column and by row")
    if cfg.tile % cfg.patch or cfg.side % cfg.merge:
        r.problem(
            f"{r.prefix}image_size is {cfg.tile}; it must be whole patches of {cfg.patch}, in whole squares of {cfg.merge} x {cfg.merge}"
        )
    if cfg.ffn_width != width * cfg.merge**2:
        r.problem(
            f"{r.prefix}intermediate_size is {cfg.ffn_width}; the merged patches that the adapter reads are {width * cfg.merge**2} wide"
        )
    r.settle(VISION_HARMLESS)
    return cfg


def _side(r: ConfigReader, key: str, fact: str, default: int) -> int:
    """A number, or a list of two equal ones."""
    return r.uniform(key, fact, highest=MAX_WIDTH, count=2, default=default)


def _merge(r: ConfigReader) -> int:
    ratio = r.number("pixel_shuffle_ratio", lowest=1e-3, highest=1.0, default=0.5)
    merge = round(1 / ratio)
    if abs(merge * ratio - 1) > 1e-9:
        r.problem(f"{r.prefix}pixel_shuffle_ratio is {ratio:g}; allowed is one over a whole number")
    r.note("vision.merge", merge, "pixel_shuffle_ratio")
    return merge


def _vision_theta(r: ConfigReader) -> float:
    rope = read_rope(r, 2, MAX_CONTEXT, fact="vision.rope")
    if rope.scaling is not None:
        r.problem(f"{r.prefix}rope_parameters ask for scaling; the positions in a tile are not stretched")
    return rope.theta


def stored(spec: TensorSpec) -> tuple[TensorSpec, ...]:
    """The tensors of a file that hold this weight, with their shapes there: none for `up` of experts, which is beside `gate`."""
    if spec.name.endswith(".experts.gate"):
        num_experts, expert_width, width = spec.shape
        return (replace(spec, name=f"{spec.name}_up", shape=(num_experts, width, 2 * expert_width)),)
    if spec.name.endswith(".experts.up"):
        return ()
    if spec.name.endswith(".experts.down"):
        return (replace(spec, shape=(spec.shape[0], spec.shape[2], spec.shape[1])),)
    return (replace(spec, shape=spec.shape[1:]),) if spec.name == "vision.class" else (spec,)


def source(spec: TensorSpec, found: Mapping[str, Source]) -> Source:
    """Where a weight comes from, given the tensors that `stored` names."""
    layer, _, rest = spec.name.rpartition(".experts.")
    if layer and rest == "down":
        return Transposed(found[spec.name])
    if layer:
        width = spec.shape[1]
        first = 0 if rest == "gate" else width
        return Part(Transposed(found[f"{layer}.experts.gate_up"]), 1, first, first + width)
    return Reshaped(found[spec.name], spec.shape) if spec.name == "vision.class" else found[spec.name]
