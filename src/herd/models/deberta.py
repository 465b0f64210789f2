"""DeBERTa-v3 as a classifier of texts: Prompt Guard 1 and 2. Not a Llama: it reads a whole text at once and writes none.

    tokens -> embed -> norm -> [ norm(x + attention(x)) ; norm(x + mlp(x)) ] * L -> first token -> gelu(dense) -> logits of labels

Attention is disentangled (`PictureOps.relative_attend`): positions are no part of the input; how far two tokens are apart is scored
with one table of `2 * buckets` relative positions, which each layer projects with its own query and key matrices. Far distances
share a bucket, in logarithmic steps.

Sources: arXiv 2006.03654 (DeBERTa), arXiv 2111.09543 (v3), `transformers` `models/deberta_v2/modeling_deberta_v2.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from herd.models.architecture import CacheShape
from herd.models.encoder_blocks import (
    BiasedMatrix,
    EncoderLayerWeights,
    LayerNormWeights,
    ffn,
    layer_tensors,
    layer_weights,
    linear,
    linear_tensors,
    linear_weights,
    norm,
    norm_tensors,
    norm_weights,
)
from herd.models.ops import PictureOps, Tensor
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DebertaConfig:
    """The facts of one classifier. `labels` in the order of the logits; `buckets` for distances to one side."""

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    vocab_size: int
    context_length: int
    buckets: int
    max_distance: int
    norm_eps: float
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DebertaWeights:
    embed: Matrix
    embed_norm: LayerNormWeights
    distances: Matrix
    distance_norm: LayerNormWeights
    layers: tuple[EncoderLayerWeights, ...]
    pooler: BiasedMatrix
    classifier: BiasedMatrix


def classify(w: DebertaWeights, cfg: DebertaConfig, ops: PictureOps, tokens: Sequence[int]) -> Tensor:
    """All tokens of a text, [CLS] first -> logits of the labels [1, labels]."""
    x_ID = norm(ops.embed(tokens, w.embed), w.embed_norm, ops, cfg.norm_eps)
    near_kD = norm(ops.embed(range(2 * cfg.buckets), w.distances), w.distance_norm, ops, cfg.norm_eps)
    buckets = distance_buckets(len(tokens), cfg)
    for layer in w.layers:
        x_ID = _layer(x_ID, layer, near_kD, buckets, cfg, ops)
    first_1D = ops.rows(x_ID, [0])
    return linear(ops.gelu(linear(first_1D, w.pooler, ops)), w.classifier, ops)


def _layer(
    x_ID: Tensor, w: EncoderLayerWeights, near_kD: Tensor, buckets: Sequence[Sequence[int]], cfg: DebertaConfig, ops: PictureOps
) -> Tensor:
    """As in other encoders, but for the attention, and with the norms after what is added."""
    q_INH, k_INH, v_INH = (ops.heads(linear(x_ID, each, ops), cfg.num_heads) for each in (w.q, w.k, w.v))
    near_k, near_q = (ops.heads(linear(near_kD, each, ops), cfg.num_heads) for each in (w.k, w.q))
    y_INH = ops.relative_attend(q_INH, k_INH, v_INH, near_k, near_q, buckets)
    x_ID = norm(ops.add(x_ID, linear(ops.merge_heads(y_INH), w.out, ops)), w.attention_norm, ops, cfg.norm_eps)
    return norm(ops.add(x_ID, ffn(x_ID, w, ops)), w.ffn_norm, ops, cfg.norm_eps)


def distance_buckets(length: int, cfg: DebertaConfig) -> list[list[int]]:
    """For query i and key j the row of the table of distances [length, length]."""
    last = 2 * cfg.buckets - 1
    row = [min(max(_bucket(distance, cfg) + cfg.buckets, 0), last) for distance in range(-length + 1, length)]
    return [[row[i - j + length - 1] for j in range(length)] for i in range(length)]


def _bucket(distance: int, cfg: DebertaConfig) -> int:
    """Distances up to half the buckets stand for themselves; from there the buckets grow up to `max_distance`."""
    middle, far = cfg.buckets // 2, abs(distance)
    if far <= middle:
        return distance
    steps = math.ceil(math.log(far / middle) / math.log((cfg.max_distance - 1) / middle) * (middle - 1)) + middle
    return steps if distance > 0 else -steps


def caches(cfg: DebertaConfig) -> tuple[CacheShape, ...]:
    """None: nothing is read twice."""
    return ()


def tensors(cfg: DebertaConfig) -> Iterator[TensorSpec]:
    """Every weight of this model, once."""
    width = cfg.width
    yield TensorSpec("embed", (cfg.vocab_size, width), Kind.EMBEDDING)
    yield from norm_tensors("embed_norm", width)
    yield TensorSpec("distances", (2 * cfg.buckets, width), Kind.EMBEDDING)
    yield from norm_tensors("distance_norm", width)
    for index in range(cfg.num_layers):
        yield from layer_tensors(f"layers.{index}", width, cfg.mlp_width)
    yield from linear_tensors("pooler", width, width)
    yield from linear_tensors("classifier", len(cfg.labels), width)


def weights(cfg: DebertaConfig, leaf: Leaf) -> DebertaWeights:
    """The tree that `classify` reads."""
    return DebertaWeights(
        embed=leaf("embed"),
        embed_norm=norm_weights("embed_norm", leaf),
        distances=leaf("distances"),
        distance_norm=norm_weights("distance_norm", leaf),
        layers=tuple(layer_weights(f"layers.{index}", leaf) for index in range(cfg.num_layers)),
        pooler=linear_weights("pooler", leaf),
        classifier=linear_weights("classifier", leaf),
    )
