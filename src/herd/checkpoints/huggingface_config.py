"""config.json of Hugging Face's LlamaForCausalLM: what is required, what is assumed, and what does not matter to us.

Source: transformers `configuration_llama.py` and `modeling_rope_utils.py`, versions 4.31 to 5.23; defaults are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader, shown
from herd.checkpoints.huggingface_rope import read_rope
from herd.models.llama import LlamaConfig

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
CONCLUSION = "herd reads folders whose config.json it understands whole."


def read_config(values: Mapping[str, Any], where: str, facts: dict[str, Fact]) -> LlamaConfig:
    """The config; `facts` collects where each number came from. One `FileProblem` for all that is wrong."""
    r = ConfigReader(values, where, facts)
    r.expect("model_type", "llama", because="this is the reader of llamas")
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
        rope=read_rope(r, head_width, context_length),
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
