"""Llama 1, 2, 3, 3.1, 3.2 (text), 3.3, and every model that declares the llama architecture.

One function with other numbers: multi-head or grouped-query attention, rotary positions, a gated feed-forward, pre-norm
residual blocks, and a head that may be the embedding table again.

    tokens_T -> embed -> x_TD -> [ x + attention(norm(x)) ; x + ffn(norm(x)) ] * L -> norm -> logits_RV

Source: Meta's `llama_models/llama3/model.py`; community variants (biases) as in `transformers` `modeling_llama.py`.
Shapes: docs/shapes.md. Checked on every backend and storage format: tests/conformance/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from herd.models.ops import Step, Tensor
from herd.models.rope import Rope
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec, Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """The facts of one llama architecture. Nothing about running it."""

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffn_width: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope: Rope
    tied_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False

    @property
    def group_size(self) -> int:
        """Query heads that share one kv head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    q: Matrix
    k: Matrix
    v: Matrix
    out: Matrix
    q_bias: Vector | None
    k_bias: Vector | None
    v_bias: Vector | None
    out_bias: Vector | None


@dataclass(frozen=True, slots=True)
class FfnWeights:
    gate: Matrix
    up: Matrix
    down: Matrix
    gate_bias: Vector | None
    up_bias: Vector | None
    down_bias: Vector | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attention_norm: Vector
    attention: AttentionWeights
    ffn_norm: Vector
    ffn: FfnWeights


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    embed: Matrix
    layers: tuple[LayerWeights, ...]
    norm: Vector
    head: Matrix


def forward(w: LlamaWeights, cfg: LlamaConfig, step: Step) -> Tensor:
    """This step's tokens -> logits_RV of the rows in `step.outputs_R`."""
    ops = step.ops
    x_TD = ops.embed(step.tokens_T, w.embed)
    rotary_TH = ops.rotary(step.positions_T, cfg.rope.frequencies(), cfg.rope.magnitude)
    for layer, cache in zip(w.layers, step.cache, strict=True):
        x_TD = ops.add(x_TD, attention(ops.rms_norm(x_TD, layer.attention_norm, cfg.norm_eps), layer.attention, rotary_TH, cache, cfg, step))
        x_TD = ops.add(x_TD, ffn(ops.rms_norm(x_TD, layer.ffn_norm, cfg.norm_eps), layer.ffn, step))
    x_RD = ops.rms_norm(ops.select(x_TD, step.outputs_R), w.norm, cfg.norm_eps)
    return ops.linear(x_RD, w.head)


def attention(x_TD: Tensor, w: AttentionWeights, rotary_TH: Tensor, cache: Tensor, cfg: LlamaConfig, step: Step) -> Tensor:
    """x_TD -> y_TD. Writes this step's keys and values into `cache`."""
    ops = step.ops
    q_TNH = ops.rotate(ops.heads(ops.linear(x_TD, w.q, w.q_bias), cfg.num_heads), rotary_TH)
    k_TKH = ops.rotate(ops.heads(ops.linear(x_TD, w.k, w.k_bias), cfg.num_kv_heads), rotary_TH)
    v_TKH = ops.heads(ops.linear(x_TD, w.v, w.v_bias), cfg.num_kv_heads)
    y_TNH = ops.attention(q_TNH, k_TKH, v_TKH, cache, scale=cfg.head_width**-0.5)
    return ops.linear(ops.merge_heads(y_TNH), w.out, w.out_bias)


def ffn(x_TD: Tensor, w: FfnWeights, step: Step) -> Tensor:
    """x_TD -> down(silu(gate(x)) * up(x))."""
    ops = step.ops
    return ops.linear(ops.silu_gate(ops.linear(x_TD, w.gate, w.gate_bias), ops.linear(x_TD, w.up, w.up_bias)), w.down, w.down_bias)


def tensors(cfg: LlamaConfig) -> Iterator[TensorSpec]:
    """Every weight of this model, once. Loading fails if a file and this list disagree."""
    q_width, kv_width = cfg.num_heads * cfg.head_width, cfg.num_kv_heads * cfg.head_width
    yield TensorSpec("embed", (cfg.vocab_size, cfg.width), Kind.EMBEDDING)
    for index in range(cfg.num_layers):
        at = f"layers.{index}"
        yield TensorSpec(f"{at}.attention_norm", (cfg.width,), Kind.NORM)
        yield TensorSpec(f"{at}.attention.q", (q_width, cfg.width), rotary_heads=cfg.num_heads)
        yield TensorSpec(f"{at}.attention.k", (kv_width, cfg.width), rotary_heads=cfg.num_kv_heads)
        yield TensorSpec(f"{at}.attention.v", (kv_width, cfg.width))
        yield TensorSpec(f"{at}.attention.out", (cfg.width, q_width))
        if cfg.qkv_bias:
            yield TensorSpec(f"{at}.attention.q_bias", (q_width,), Kind.BIAS, rotary_heads=cfg.num_heads)
            yield TensorSpec(f"{at}.attention.k_bias", (kv_width,), Kind.BIAS, rotary_heads=cfg.num_kv_heads)
            yield TensorSpec(f"{at}.attention.v_bias", (kv_width,), Kind.BIAS)
        if cfg.out_bias:
            yield TensorSpec(f"{at}.attention.out_bias", (cfg.width,), Kind.BIAS)
        yield TensorSpec(f"{at}.ffn_norm", (cfg.width,), Kind.NORM)
        yield TensorSpec(f"{at}.ffn.gate", (cfg.ffn_width, cfg.width))
        yield TensorSpec(f"{at}.ffn.up", (cfg.ffn_width, cfg.width))
        yield TensorSpec(f"{at}.ffn.down", (cfg.width, cfg.ffn_width))
        if cfg.ffn_bias:
            yield TensorSpec(f"{at}.ffn.gate_bias", (cfg.ffn_width,), Kind.BIAS)
            yield TensorSpec(f"{at}.ffn.up_bias", (cfg.ffn_width,), Kind.BIAS)
            yield TensorSpec(f"{at}.ffn.down_bias", (cfg.width,), Kind.BIAS)
    yield TensorSpec("norm", (cfg.width,), Kind.NORM)
    if not cfg.tied_embeddings:
        yield TensorSpec("head", (cfg.vocab_size, cfg.width), Kind.HEAD)


def weights(cfg: LlamaConfig, leaf: Leaf) -> LlamaWeights:
    """The tree that `forward` reads, from a function that gives the leaf of each name in `tensors(cfg)`."""

    def vector(name: str, present: bool = True) -> Vector | None:
        return cast(Vector, leaf(name)) if present else None

    def layer(at: str) -> LayerWeights:
        return LayerWeights(
            attention_norm=cast(Vector, leaf(f"{at}.attention_norm")),
            attention=AttentionWeights(
                q=leaf(f"{at}.attention.q"),
                k=leaf(f"{at}.attention.k"),
                v=leaf(f"{at}.attention.v"),
                out=leaf(f"{at}.attention.out"),
                q_bias=vector(f"{at}.attention.q_bias", cfg.qkv_bias),
                k_bias=vector(f"{at}.attention.k_bias", cfg.qkv_bias),
                v_bias=vector(f"{at}.attention.v_bias", cfg.qkv_bias),
                out_bias=vector(f"{at}.attention.out_bias", cfg.out_bias),
            ),
            ffn_norm=cast(Vector, leaf(f"{at}.ffn_norm")),
            ffn=FfnWeights(
                gate=leaf(f"{at}.ffn.gate"),
                up=leaf(f"{at}.ffn.up"),
                down=leaf(f"{at}.ffn.down"),
                gate_bias=vector(f"{at}.ffn.gate_bias", cfg.ffn_bias),
                up_bias=vector(f"{at}.ffn.up_bias", cfg.ffn_bias),
                down_bias=vector(f"{at}.ffn.down_bias", cfg.ffn_bias),
            ),
        )

    embed = leaf("embed")
    return LlamaWeights(
        embed=embed,
        layers=tuple(layer(f"layers.{index}") for index in range(cfg.num_layers)),
        norm=cast(Vector, leaf("norm")),
        head=embed if cfg.tied_embeddings else leaf("head"),
    )
