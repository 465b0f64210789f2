"""The pieces that picture encoders and classifiers share: layer norms and projections with biases, and a layer of both.

A piece is its weights, their declaration and its function, as in `blocks.py`. A bias has its weight's name and `_bias`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from herd.models.blocks import vector
from herd.models.ops import PictureOps, Tensor
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec, Vector

NORM_EPS = 1e-5
"""Of the layer norms inside the picture encoders of all releases, whatever a config says."""


@dataclass(frozen=True, slots=True)
class LayerNormWeights:
    weight: Vector
    bias: Vector


@dataclass(frozen=True, slots=True)
class BiasedMatrix:
    weight: Matrix
    bias: Vector


@dataclass(frozen=True, slots=True)
class EncoderLayerWeights:
    attention_norm: LayerNormWeights
    q: BiasedMatrix
    k: BiasedMatrix
    v: BiasedMatrix
    out: BiasedMatrix
    ffn_norm: LayerNormWeights
    up: BiasedMatrix
    down: BiasedMatrix


def encoder_layer(
    x_ID: Tensor, w: EncoderLayerWeights, rotary_IH: Tensor, num_heads: int, head_width: int, lengths: Sequence[int], ops: PictureOps
) -> Tensor:
    """x_ID -> x_ID with attention and feed-forward added, each of what its norm makes of x. Rows see those of their own group,
    `lengths` of them."""
    normed_ID = norm(x_ID, w.attention_norm, ops)
    q_INH, k_INH, v_INH = (ops.heads(linear(normed_ID, matrix, ops), num_heads) for matrix in (w.q, w.k, w.v))
    y_INH = ops.attend(ops.rotate(q_INH, rotary_IH), ops.rotate(k_INH, rotary_IH), v_INH, head_width**-0.5, lengths)
    x_ID = ops.add(x_ID, linear(ops.merge_heads(y_INH), w.out, ops))
    return ops.add(x_ID, ffn(norm(x_ID, w.ffn_norm, ops), w, ops))


def ffn(x_ID: Tensor, w: EncoderLayerWeights, ops: PictureOps) -> Tensor:
    """x_ID -> down(gelu(up(x)))."""
    return linear(ops.gelu(linear(x_ID, w.up, ops)), w.down, ops)


def norm(x_ID: Tensor, w: LayerNormWeights, ops: PictureOps, eps: float = NORM_EPS) -> Tensor:
    return ops.layer_norm(x_ID, w.weight, w.bias, eps)


def linear(x_ID: Tensor, w: BiasedMatrix, ops: PictureOps) -> Tensor:
    return ops.linear(x_ID, w.weight, w.bias)


def norm_tensors(at: str, width: int) -> Iterator[TensorSpec]:
    """A layer norm under the name `at`."""
    yield TensorSpec(at, (width,), Kind.NORM)
    yield TensorSpec(f"{at}_bias", (width,), Kind.BIAS)


def linear_tensors(at: str, rows: int, columns: int, rotary_heads: int = 0) -> Iterator[TensorSpec]:
    """A projection with its bias under the name `at`."""
    yield TensorSpec(at, (rows, columns), rotary_heads=rotary_heads)
    yield TensorSpec(f"{at}_bias", (rows,), Kind.BIAS, rotary_heads=rotary_heads)


def layer_tensors(at: str, width: int, ffn_width: int, rotary_heads: int = 0) -> Iterator[TensorSpec]:
    """The weights of one layer under the name `at`. `rotary_heads`: as in `TensorSpec`, of queries and keys."""
    yield from norm_tensors(f"{at}.attention_norm", width)
    for name in ("q", "k", "v", "out"):
        yield from linear_tensors(f"{at}.attention.{name}", width, width, rotary_heads if name in ("q", "k") else 0)
    yield from norm_tensors(f"{at}.ffn_norm", width)
    yield from linear_tensors(f"{at}.ffn.up", ffn_width, width)
    yield from linear_tensors(f"{at}.ffn.down", width, ffn_width)


def norm_weights(at: str, leaf: Leaf) -> LayerNormWeights:
    return LayerNormWeights(vector(leaf, at), vector(leaf, f"{at}_bias"))


def linear_weights(at: str, leaf: Leaf) -> BiasedMatrix:
    return BiasedMatrix(leaf(at), vector(leaf, f"{at}_bias"))


def layer_weights(at: str, leaf: Leaf) -> EncoderLayerWeights:
    """The tree that `encoder_layer` reads."""
    return EncoderLayerWeights(
        attention_norm=norm_weights(f"{at}.attention_norm", leaf),
        q=linear_weights(f"{at}.attention.q", leaf),
        k=linear_weights(f"{at}.attention.k", leaf),
        v=linear_weights(f"{at}.attention.v", leaf),
        out=linear_weights(f"{at}.attention.out", leaf),
        ffn_norm=norm_weights(f"{at}.ffn_norm", leaf),
        up=linear_weights(f"{at}.ffn.up", leaf),
        down=linear_weights(f"{at}.ffn.down", leaf),
    )
