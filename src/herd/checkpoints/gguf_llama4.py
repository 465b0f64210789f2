"""Llama 4 in GGUF files, its text: keys to config and back.

The files say little of what is special: layers with experts come at an interval, and which layers rotate, the chunk and the
temperature are those of the releases, built into llama.cpp. q/k norm is on but for 128 experts (Maverick). A sliding window of 0
means that every layer rotates and sees everything. What differs from that is in `herd.config` only, in files of ours.
Source: llama.cpp's `models/llama4.cpp` and `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from herd.checkpoints.checkpoint import Fact
from herd.checkpoints.config_reader import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, ConfigReader
from herd.checkpoints.gguf import Metadata
from herd.checkpoints.gguf_shared import any_of, rope_of, vocab_size_of
from herd.checkpoints.names import GGUF
from herd.checkpoints.stored import StoredTensor
from herd.models.llama4 import Llama4Config, every

AT = "llama4"
MAVERICK_EXPERTS = 128
INTERVAL, CHUNK, FLOOR, SCALE = 4, 8192, 8192.0, 0.1
NAMES = {
    **GGUF,
    "layers.{}.router": "blk.{}.ffn_gate_inp.weight",
    "layers.{}.experts.gate": "blk.{}.ffn_gate_exps.weight",
    "layers.{}.experts.up": "blk.{}.ffn_up_exps.weight",
    "layers.{}.experts.down": "blk.{}.ffn_down_exps.weight",
    "layers.{}.shared.gate": "blk.{}.ffn_gate_shexp.weight",
    "layers.{}.shared.up": "blk.{}.ffn_up_shexp.weight",
    "layers.{}.shared.down": "blk.{}.ffn_down_shexp.weight",
}


def read_llama4_config(r: ConfigReader, metadata: Metadata, tensors: Mapping[str, StoredTensor], where: str) -> Llama4Config:
    """The config; `r` collects what is wrong."""
    width = r.integer(f"{AT}.embedding_length", "width", highest=MAX_WIDTH)
    num_layers = r.integer(f"{AT}.block_count", "num_layers", highest=MAX_LAYERS)
    num_heads = r.uniform(f"{AT}.attention.head_count", "num_heads", highest=MAX_HEADS, count=num_layers)
    head_width = r.integer(f"{AT}.attention.key_length", "head_width", highest=MAX_WIDTH, default=max(1, width // num_heads))
    r.expect(f"{AT}.attention.value_length", head_width, because="keys and values of one width are supported")
    num_experts = r.integer(f"{AT}.expert_count", "num_experts", lowest=0, highest=1 << 14, default=0)
    num_chosen = r.integer(f"{AT}.expert_used_count", "num_chosen", lowest=0, highest=max(1, num_experts), default=1)
    step = r.integer(f"{AT}.interleave_moe_layer_step", lowest=0, highest=MAX_LAYERS, default=1 if num_experts else 0)
    r.expect(f"{AT}.attention.sliding_window", 0, CHUNK, because="other chunks have no key; 0 means none")
    rotary, chunked, chunk, floor, scale = pattern(num_layers, has_window=metadata.get(f"{AT}.attention.sliding_window") != 0)
    r.facts["chunk"] = Fact(chunk, f"assumed, as llama.cpp does: {where} does not say")
    return Llama4Config(
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=r.uniform(f"{AT}.attention.head_count_kv", "num_kv_heads", highest=MAX_HEADS, count=num_layers, default=num_heads),
        head_width=head_width,
        ffn_width=r.uniform(f"{AT}.feed_forward_length", "ffn_width", highest=MAX_VOCABULARY, count=num_layers),
        expert_width=r.uniform(f"{AT}.expert_feed_forward_length", "expert_width", highest=MAX_VOCABULARY, count=num_layers),
        num_experts=max(1, num_experts),
        num_chosen=max(1, num_chosen),
        expert_layers=every(step, num_layers) if step and num_experts else (),
        rotary_layers=rotary,
        chunked_layers=chunked,
        chunk=chunk,
        vocab_size=vocab_size_of(AT, r, metadata, tensors),
        context_length=r.integer(f"{AT}.context_length", "context_length", highest=MAX_CONTEXT),
        norm_eps=r.number(f"{AT}.attention.layer_norm_rms_epsilon", "norm_eps", lowest=1e-12, highest=0.1),
        rope=rope_of(AT, r, tensors, head_width),
        qk_norm=num_experts != MAVERICK_EXPERTS,
        temper_floor=floor,
        temper_scale=scale,
        tied_embeddings="output.weight" not in tensors,
        qkv_bias=any_of(tensors, "attn_q.bias", "attn_k.bias", "attn_v.bias"),
        out_bias=any_of(tensors, "attn_output.bias"),
    )


def pattern(num_layers: int, *, has_window: bool) -> tuple[tuple[int, ...], tuple[int, ...], int | None, float, float]:
    """(rotary layers, chunked layers, chunk, floor and scale of temperature) that a file means which does not say."""
    if not has_window:
        return tuple(range(num_layers)), (), None, FLOOR, 0.0
    rotary = tuple(layer for layer in range(num_layers) if layer not in every(INTERVAL, num_layers))
    return rotary, rotary, CHUNK, FLOOR, SCALE


def keys_of_llama4(cfg: Llama4Config) -> dict[str, Any]:
    """The keys that llama does not have."""
    keys: dict[str, Any] = {
        f"{AT}.expert_count": cfg.num_experts if cfg.expert_layers else 0,
        f"{AT}.expert_used_count": cfg.num_chosen if cfg.expert_layers else 0,
        f"{AT}.expert_feed_forward_length": cfg.expert_width,
        f"{AT}.interleave_moe_layer_step": cfg.expert_layers[0] + 1 if cfg.expert_layers else 0,
    }
    return keys | ({} if _has_window(cfg) else {f"{AT}.attention.sliding_window": 0})


def not_said_of_llama4(cfg: Llama4Config) -> list[str]:
    """What llama.cpp does not learn."""
    notes = []
    if cfg.expert_layers != every(cfg.expert_layers[0] + 1 if cfg.expert_layers else 1, cfg.num_layers):
        notes.append(f"that the layers {cfg.expert_layers} have experts: llama.cpp knows one interval, and refuses a Llama 4 without any")
    said = (cfg.rotary_layers, cfg.chunked_layers, cfg.chunk, cfg.temper_floor, cfg.temper_scale)
    if pattern(cfg.num_layers, has_window=_has_window(cfg)) != said:
        notes.append(
            f"its chunk of {cfg.chunk} tokens, which layers rotate, or its temperature: llama.cpp has those of the releases built in"
        )
    if cfg.qk_norm != (cfg.num_experts != MAVERICK_EXPERTS):
        notes.append(f"that q/k norm is {'on' if cfg.qk_norm else 'off'}: llama.cpp infers it from the number of experts")
    return notes


def _has_window(cfg: Llama4Config) -> bool:
    return bool(cfg.chunked_layers) or len(cfg.rotary_layers) < cfg.num_layers
