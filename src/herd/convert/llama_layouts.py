"""The llama architecture in each layout: what its config and its tensors become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from herd.checkpoints import gguf_keys, meta_params, names
from herd.checkpoints.checkpoint import Checkpoint
from herd.checkpoints.sources import Halved, Interleaved, Source
from herd.checkpoints.stored import of_values
from herd.convert.shaping import Shaping, widened_names
from herd.convert.streams import Output, in_format
from herd.errors import UsageError
from herd.models.llama import LlamaConfig
from herd.models.llama4 import Llama4Config
from herd.models.rope import Divisors, Linear, Llama3, Rope, Yarn
from herd.models.weights import TensorSpec

C = TypeVar("C", LlamaConfig, Llama4Config)
# Scalings that files keep as divisors only, and that are known by them: releases 3.1, 3.2 and 4.
KNOWN_SCALINGS = (Llama3(8.0, 1.0, 4.0, 8192), Llama3(32.0, 1.0, 4.0, 8192), Llama3(16.0, 1.0, 1.0, 8192))


def huggingface_config(cfg: LlamaConfig) -> dict[str, Any]:
    """config.json, but for tokens and number format."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "intermediate_size": cfg.ffn_width,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta,
        "rope_scaling": rope_scaling(cfg.rope),
        "tie_word_embeddings": cfg.tied_embeddings,
        "attention_bias": cfg.qkv_bias or cfg.out_bias,
        "mlp_bias": cfg.ffn_bias,
    }


def rope_scaling(rope: Rope) -> dict[str, Any] | None:
    match rope.scaling:
        case None:
            return None
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3(factor, low, high, original):
            numbers = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", **numbers}
        case Yarn(factor, original, fast, slow, _, truncate):
            numbers = {"factor": factor, "original_max_position_embeddings": original, "beta_fast": fast, "beta_slow": slow}
            return {"rope_type": "yarn", **numbers, "attention_factor": rope.magnitude, "truncate": truncate}
    raise UsageError(
        "The model's rotary frequencies are scaled by a list of divisors that is none of a known release; only GGUF keeps such a list."
    )


def huggingface_outputs(checkpoint: Checkpoint, shaping: Shaping) -> list[Output]:
    """All tensors by their names there, halves of heads apart. A bias that only some projections have is zeros in the others."""
    outputs = [
        Output(names.in_file(names.HUGGING_FACE, spec.name), halved(shaping.plain(checkpoint, spec), spec.rotary_heads))
        for spec in checkpoint.specs
    ]
    cfg: LlamaConfig = checkpoint.config
    if cfg.qkv_bias != cfg.out_bias:
        shaping.notes.append(
            "Hugging Face has biases in all four projections of attention or in none; zeros were written for those missing."
        )
        kind = shaping.plain(checkpoint, checkpoint.specs[1]).dtype
        for layer in range(cfg.num_layers):
            for spec in _missing_biases(cfg, layer):
                zeros = in_format(of_values(np.zeros(spec.shape, np.float32)), kind)
                outputs.append(Output(names.in_file(names.HUGGING_FACE, spec.name), zeros))
    return outputs


def _missing_biases(cfg: LlamaConfig, layer: int) -> list[TensorSpec]:
    at, kv_width = f"layers.{layer}.attention", cfg.num_kv_heads * cfg.head_width
    if cfg.qkv_bias:
        return [TensorSpec(f"{at}.out_bias", (cfg.width,))]
    sizes = {"q": cfg.num_heads * cfg.head_width, "k": kv_width, "v": kv_width}
    return [TensorSpec(f"{at}.{name}_bias", (size,)) for name, size in sizes.items()]


def halved(source: Source, heads: int) -> Source:
    """A weight of rotated heads with the halves of each head apart; `heads` 0: as it is."""
    if not heads:
        return source
    return source.tensor if isinstance(source, Interleaved) and source.num_heads == heads else Halved(source, heads)


def meta_params_of(cfg: LlamaConfig, notes: list[str]) -> dict[str, Any]:
    """params.json. `notes` get what Meta's own program does not read from it."""
    notes += [f"Meta's own program does not learn from params.json {each}." for each in meta_params.not_said(cfg)]
    return {**meta_params.params_of(cfg), "herd": meta_params.kept(cfg)}


def meta_outputs(checkpoint: Checkpoint, shaping: Shaping) -> list[Output]:
    """All tensors by their names there; a tied head is the embedding's storage again."""
    outputs = [Output(names.in_file(names.META, spec.name), shaping.plain(checkpoint, spec)) for spec in checkpoint.specs]
    if checkpoint.config.tied_embeddings:
        outputs.append(Output(names.META["head"], outputs[0].source))
    return outputs


def gguf_outputs(checkpoint: Checkpoint, cfg: LlamaConfig, shaping: Shaping) -> tuple[dict[str, Any], list[Output]]:
    """The keys of the architecture and the tensors."""
    return gguf_tensors(checkpoint, checkpoint.specs, cfg, names.GGUF, shaping)


def gguf_tensors(
    checkpoint: Checkpoint, specs: Sequence[TensorSpec], cfg: Any, table: dict[str, str], shaping: Shaping
) -> tuple[dict[str, Any], list[Output]]:
    """Keys and tensors of these weights, called as `table` says."""
    shaping.notes += [f"Other programs do not learn from the GGUF file {each}." for each in gguf_keys.not_said(cfg)]
    sources = {spec.name: shaping.for_gguf(checkpoint, spec) for spec in specs}
    keys = {**gguf_keys.keys_of(cfg), gguf_keys.CONFIG: gguf_keys.kept(cfg)}
    before = widened_names(checkpoint, specs, sources)
    for key, dtype in gguf_keys.WIDENED.items():
        if before[dtype]:
            keys[key] = before[dtype]
    outputs = [Output(names.in_file(table, spec.name), sources[spec.name]) for spec in specs]
    if (divisors := gguf_keys.divisors_of(cfg.rope)) is not None:
        outputs.append(Output("rope_freqs.weight", of_values(np.asarray(divisors, np.float32))))
    return keys, outputs


def named_scaling(cfg: C, notes: list[str]) -> C:
    """The config with a list of divisors replaced by the rule that it follows, if that is a release's."""
    if not isinstance(cfg.rope.scaling, Divisors):
        return cfg
    for scaling in KNOWN_SCALINGS:
        rule = replace(cfg.rope, scaling=scaling)
        ratios = np.asarray(rule.frequencies()) / np.asarray(cfg.rope.frequencies())
        if np.all(np.abs(ratios - 1) < 1e-5):
            notes.append(
                f"The file's list of rotary divisors is that of llama3 scaling by {scaling.factor:g}; it was written as that rule."
            )
            return replace(cfg, rope=rule)
    return cfg
