"""Llama 1, 2, 3, 3.1, 3.2 (text), 3.3, and every model that declares the llama architecture.

One function with other numbers: multi-head or grouped-query attention, rotary positions, a gated feed-forward, pre-norm
residual blocks, and a head that may be the embedding table again.

    tokens_T -> embed -> x_TD -> [ x + attention(norm(x)) ; x + ffn(norm(x)) ] * L -> norm -> logits_RV

Source: Meta's `llama_models/llama3/model.py`; community variants (biases) as in `transformers` `modeling_llama.py`.
Shapes: docs/shapes.md. Checked on every backend and storage format: tests/conformance/.
"""

from __future__ import annotations

from collections.abc import Iterator

from herd.models.architecture import CacheShape
from herd.models.blocks import (
    AttentionWeights,
    FfnWeights,
    LayerShape,
    attention,
    attention_tensors,
    attention_weights,
    ffn,
    ffn_tensors,
    ffn_weights,
    vector,
)
from herd.models.ops import Step, Tensor
from herd.models.rope import Rope
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec, Vector
from herd.records import dataclass


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
class LayerWeights:
    at: str
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
    """This step's tokens -> logits_RV of the rows in `step.outputs_R`.

    Named values: embed, of each layer `middle` (after attention) and `out` (both of the residual stream) and those of its
    attention and feed-forward, final (after the last norm), logits.
    """
    return logits(hidden(w, cfg, step), w, cfg, step)


def hidden(w: LlamaWeights, cfg: LlamaConfig, step: Step) -> Tensor:
    """This step's tokens -> x_RD after the last norm."""
    ops = step.ops
    x_TD = ops.tap("embed", ops.embed(step.tokens_T, w.embed))
    rotary_TH = ops.rotary(step.positions_T, cfg.rope.frequencies(), cfg.rope.magnitude)
    for layer_w, cache in zip(w.layers, step.cache, strict=True):
        x_TD = step.run(layer, x_TD, layer_w, rotary_TH, cache, cfg, step)
    return ops.tap("final", ops.rms_norm(ops.select(x_TD, step.outputs_R), w.norm, cfg.norm_eps))


def logits(x_RD: Tensor, w: LlamaWeights, cfg: LlamaConfig, step: Step) -> Tensor:
    """Rows after the last norm -> logits_RV."""
    return step.ops.tap("logits", step.ops.linear(x_RD, w.head))


def layer(x_TD: Tensor, w: LayerWeights, rotary_TH: Tensor, cache: Tensor, cfg: LayerShape, step: Step) -> Tensor:
    """x_TD -> x_TD with attention and feed-forward added, each of what its norm makes of x."""
    ops = step.ops
    normed_TD = ops.rms_norm(x_TD, w.attention_norm, cfg.norm_eps)
    x_TD = ops.tap(f"{w.at}.middle", ops.add(x_TD, attention(normed_TD, w.attention, rotary_TH, cache, cfg, step)))
    normed_TD = ops.rms_norm(x_TD, w.ffn_norm, cfg.norm_eps)
    return ops.tap(f"{w.at}.out", ops.add(x_TD, ffn(normed_TD, w.ffn, step)))


def caches(cfg: LlamaConfig) -> tuple[CacheShape, ...]:
    """Every layer keeps every token."""
    return (CacheShape(cfg.num_heads, cfg.num_kv_heads, cfg.head_width),) * cfg.num_layers


def tensors(cfg: LlamaConfig) -> Iterator[TensorSpec]:
    """Every weight of this model, once. Loading fails if a file and this list disagree."""
    yield TensorSpec("embed", (cfg.vocab_size, cfg.width), Kind.EMBEDDING)
    for index in range(cfg.num_layers):
        yield from layer_tensors(f"layers.{index}", cfg)
    yield TensorSpec("norm", (cfg.width,), Kind.NORM)
    if not cfg.tied_embeddings:
        yield TensorSpec("head", (cfg.vocab_size, cfg.width), Kind.HEAD)


def weights(cfg: LlamaConfig, leaf: Leaf) -> LlamaWeights:
    """The tree that `forward` reads, from a function that gives the leaf of each name in `tensors(cfg)`."""
    embed = leaf("embed")
    return LlamaWeights(
        embed=embed,
        layers=tuple(layer_weights(f"layers.{index}", cfg, leaf) for index in range(cfg.num_layers)),
        norm=vector(leaf, "norm"),
        head=embed if cfg.tied_embeddings else leaf("head"),
    )


def layer_tensors(at: str, cfg: LayerShape) -> Iterator[TensorSpec]:
    """The weights of one layer, under the name `at`."""
    yield TensorSpec(f"{at}.attention_norm", (cfg.width,), Kind.NORM)
    yield from attention_tensors(f"{at}.attention", cfg)
    yield TensorSpec(f"{at}.ffn_norm", (cfg.width,), Kind.NORM)
    yield from ffn_tensors(f"{at}.ffn", cfg.width, cfg.ffn_width, cfg.ffn_bias)


def layer_weights(at: str, cfg: LayerShape, leaf: Leaf) -> LayerWeights:
    """The tree that `layer` reads."""
    return LayerWeights(
        at=at,
        attention_norm=vector(leaf, f"{at}.attention_norm"),
        attention=attention_weights(f"{at}.attention", cfg, leaf),
        ffn_norm=vector(leaf, f"{at}.ffn_norm"),
        ffn=ffn_weights(f"{at}.ffn", cfg.ffn_bias, leaf),
    )
