"""config.json of Hugging Face's LlamaForCausalLM: what is required, what is assumed, and what does not matter to us.

Source: transformers `configuration_llama.py` and `modeling_rope_utils.py`, versions 4.31 to 5.23; defaults are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.errors import FileProblem
from herd.models.llama import LlamaConfig
from herd.models.rope import Linear, Llama3, Rope, Scaling, Yarn, yarn_magnitude

FILE = "config.json"
TRAINING = "matters to training only"
LOADING = "says how another program loads or stores the model"
OUTPUT = "says what another program returns besides logits"
HARMLESS = {
    "_attn_implementation": LOADING,
    "_attn_implementation_autoset": LOADING,
    "_flash_attn_2_enabled": LOADING,
    "_name_or_path": LOADING,
    "attention_dropout": TRAINING,
    "bos_token_id": "read by the tokenizer",
    "chunk_size_feed_forward": LOADING,
    "dtype": LOADING,
    "eos_token_id": "read for the stop tokens",
    "finetuning_task": TRAINING,
    "hidden_dropout": TRAINING,
    "id2label": OUTPUT,
    "initializer_range": TRAINING,
    "is_decoder": "a llama is one",
    "label2id": OUTPUT,
    "max_sequence_length": "the name of Llama 1 for a limit",
    "mergekit_version": LOADING,
    "model_name": LOADING,
    "neftune_noise_alpha": TRAINING,
    "output_attentions": OUTPUT,
    "output_hidden_states": OUTPUT,
    "pad_token_id": "padding is not needed",
    "pretraining_tp": "the same sums in another order",
    "problem_type": TRAINING,
    "resid_pdrop": TRAINING,
    "embd_pdrop": TRAINING,
    "attn_pdrop": TRAINING,
    "return_dict": OUTPUT,
    "tokenizer_class": "read from tokenizer_config.json",
    "torch_dtype": LOADING,
    "torchscript": LOADING,
    "transformers.js_config": LOADING,
    "transformers_version": LOADING,
    "unsloth_fixed": LOADING,
    "unsloth_version": LOADING,
    "use_bfloat16": LOADING,
    "use_cache": LOADING,
}
DEPENDS_ON_HISTORY = (
    "its frequencies change with the longest text seen so far, so that the same text would give other results depending on what came before"
)
CONCLUSION = "herd reads folders whose config.json it understands whole."


def read_config(values: Mapping[str, Any], where: str, facts: dict[str, Fact]) -> LlamaConfig:
    """The config; `facts` collects where each number came from. One `FileProblem` for all that is wrong."""
    model_type = values.get("model_type")
    if model_type != "llama":
        raise FileProblem(f"{where}: model_type is {shown(model_type)}; herd reads 'llama' from Hugging Face folders.")
    r = ConfigReader(values, where, facts)
    r.raw("model_type")
    _expectations(r)
    width = r.integer("hidden_size", "width", highest=MAX_WIDTH)
    num_heads = r.integer("num_attention_heads", "num_heads", highest=MAX_HEADS)
    if width % num_heads and not r.has("head_dim"):
        r.problem(f"hidden_size is {width}, which num_attention_heads {num_heads} does not divide, and head_dim is missing")
    head_width = r.integer("head_dim", "head_width", highest=MAX_WIDTH, default=max(1, width // num_heads))
    attention_bias = r.boolean("attention_bias", "attention_bias", default=False)
    context_length = r.integer("max_position_embeddings", "context_length", highest=MAX_CONTEXT, default=2048)
    cfg = LlamaConfig(
        width=width,
        num_layers=r.integer("num_hidden_layers", "num_layers", highest=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=r.integer("num_key_value_heads", "num_kv_heads", highest=MAX_HEADS, default=num_heads),
        head_width=head_width,
        ffn_width=r.integer("intermediate_size", "ffn_width", highest=MAX_VOCABULARY),
        vocab_size=r.integer("vocab_size", "vocab_size", highest=MAX_VOCABULARY),
        context_length=context_length,
        norm_eps=r.number("rms_norm_eps", "norm_eps", lowest=1e-12, highest=0.1, default=1e-6),
        rope=_rope(r, head_width, context_length),
        tied_embeddings=r.boolean("tie_word_embeddings", "tied_embeddings", default=False),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        ffn_bias=r.boolean("mlp_bias", "ffn_bias", default=False),
    )
    r.finish(CONCLUSION, HARMLESS)
    return cfg


def _expectations(r: ConfigReader) -> None:
    """What this reader assumes of every llama folder."""
    r.expect("architectures", ["LlamaForCausalLM"], because="classifiers and other heads are no language models")
    r.expect("hidden_act", "silu", because="the llama feed-forward is gated with SiLU")
    r.expect("rope_interleaved", False, because="Hugging Face folders keep the halves of a head apart")
    r.expect("is_llama_config", True, because="a llama is expected")
    r.expect("is_encoder_decoder", False, because="a llama only decodes")
    r.expect("add_cross_attention", False, because="a llama attends to its own text only")
    r.expect("partial_rotary_factor", 1, because="all of a head is rotated")
    r.expect("sliding_window", because="llama attends to everything")
    r.expect("use_sliding_window", False, because="llama attends to everything")
    r.expect("pruned_heads", {}, because="heads are whole")
    r.expect("quantization_config", because="quantised Hugging Face folders are not read; take the folder in bf16, or a GGUF file")
    r.expect("auto_map", because="code that comes with a model is never run")
    layer_types = r.raw("layer_types")
    if layer_types is not None and (not isinstance(layer_types, list) or any(each != "full_attention" for each in layer_types)):
        r.problem(f"layer_types is {shown(layer_types)}; allowed is 'full_attention' for every layer")
    r.facts["architecture"] = Fact("llama", f"model_type in {FILE}")


def _rope(r: ConfigReader, head_width: int, context_length: int) -> Rope:
    """Both spellings: `rope_theta` with `rope_scaling` (transformers 4), all in `rope_parameters` (transformers 5)."""
    old, new = r.raw("rope_scaling"), r.raw("rope_parameters")
    for key, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, dict):
            r.problem(f"{key} is {shown(value)}; allowed is an object")
            return Rope(10000.0, head_width)
    key = "rope_parameters" if new is not None else "rope_scaling"
    values = dict(new if new is not None else old or {})
    if new is not None and old is not None and any(old[each] != new.get(each, old[each]) for each in old):
        r.problem("rope_scaling and rope_parameters contradict each other; leave one of them")
    inner = ConfigReader(values, FILE, r.facts, prefix=f"{key}.")
    theta = r.number("rope_theta", "rope_theta", lowest=1.0, highest=1e15, default=10000.0)
    if inner.has("rope_theta"):
        inner_theta = inner.number("rope_theta", "rope_theta", lowest=1.0, highest=1e15)
        if r.has("rope_theta") and theta != inner_theta:
            r.problem(f"rope_theta is {theta:g} and {key}.rope_theta is {inner_theta:g}; they must agree")
        theta = inner_theta
    inner.expect("partial_rotary_factor", 1, because="all of a head is rotated")
    scaling = _scaling(inner, context_length)
    if scaling is not None:
        r.note("rope_scaling", scaling, key)
    left = [each for each in inner.unread() if values[each] is not None]
    r.problems += inner.problems + [f"{key}.{shown(each)[1:-1]} is not a key of this kind of scaling" for each in left]
    return Rope(theta=theta, width=head_width, scaling=scaling)


def _scaling(r: ConfigReader, context_length: int) -> Scaling | None:
    kinds = {value for value in (r.raw("rope_type"), r.raw("type")) if isinstance(value, str)} or {"default"}
    if len(kinds) > 1:
        r.problem(f"rope_type and type name two kinds of scaling, {shown(sorted(kinds))}; leave one of them")
    kind = min(kinds)
    if kind == "default":
        return None
    if kind in ("dynamic", "longrope"):
        r.problem(f"the rotary scaling {kind!r} is not supported: {DEPENDS_ON_HISTORY}")
        for key in r.unread():
            r.raw(key)
        return None
    if kind not in ("linear", "llama3", "yarn"):
        r.problem(f"the rotary scaling {shown(kind)} is not known; known are 'default', 'linear', 'llama3' and 'yarn'")
        for key in r.unread():
            r.raw(key)
        return None
    factor = r.number("factor", lowest=1e-6, highest=1e6)
    if kind == "linear":
        return Linear(factor)
    original = r.integer("original_max_position_embeddings", highest=MAX_CONTEXT, default=context_length)
    return _llama3(r, factor, original) if kind == "llama3" else _yarn(r, factor, original)


def _llama3(r: ConfigReader, factor: float, original: int) -> Llama3:
    low = r.number("low_freq_factor", lowest=1e-6, highest=1e6)
    high = r.number("high_freq_factor", lowest=1e-6, highest=1e6)
    if high < low:
        r.problem(f"low_freq_factor is {low:g} and high_freq_factor is {high:g}; the low one must not be the larger")
    return Llama3(factor, low, high, original)


def _yarn(r: ConfigReader, factor: float, original: int) -> Yarn:
    """`attention_factor`, or the quotient of `mscale` and `mscale_all_dim`, replaces the magnitude of the paper."""
    r.raw("finetuned")
    magnitude: float | None = None
    mscale = r.number("mscale", lowest=0, highest=1e6, default=0)
    mscale_all = r.number("mscale_all_dim", lowest=0, highest=1e6, default=0)
    if r.has("attention_factor"):
        magnitude = r.number("attention_factor", lowest=1e-6, highest=1e6)
    elif mscale and mscale_all:
        magnitude = yarn_magnitude(factor, mscale, mscale_all)
    return Yarn(
        factor=factor,
        original_context=original,
        beta_fast=r.number("beta_fast", lowest=1e-3, highest=1e6, default=32.0),
        beta_slow=r.number("beta_slow", lowest=1e-3, highest=1e6, default=1.0),
        magnitude=magnitude,
        truncate=r.boolean("truncate", default=True),
    )
