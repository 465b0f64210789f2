"""The pieces that llamas share: grouped-query attention and the gated feed-forward, each with its weights.

A piece is three things side by side: the function, the tree of weights it reads, and the declaration of those weights.
Source: Meta's `llama_models/llama3/model.py`; biases as in `transformers` `modeling_llama.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

from herd.models.ops import Step, Tensor, Window
from herd.models.weights import Kind, Leaf, Matrix, TensorSpec, Vector
from herd.records import dataclass


class AttentionShape(Protocol):
    """What attention needs to know of a config."""

    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def out_bias(self) -> bool: ...


class LayerShape(AttentionShape, Protocol):
    """What a whole layer of a llama needs to know of a config."""

    @property
    def norm_eps(self) -> float: ...
    @property
    def ffn_width(self) -> int: ...
    @property
    def ffn_bias(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    at: str
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
    at: str
    gate: Matrix
    up: Matrix
    down: Matrix
    gate_bias: Vector | None
    up_bias: Vector | None
    down_bias: Vector | None


def attention(x_TD: Tensor, w: AttentionWeights, rotary_TH: Tensor, cache: Tensor, cfg: AttentionShape, step: Step) -> Tensor:
    """x_TD -> y_TD, with rotary positions. Writes this step's keys and values into `cache`. Named values: those of `attend`."""
    ops = step.ops
    q_TNH, k_TKH, v_TKH = project(x_TD, w, cfg, step)
    return attend((ops.rotate(q_TNH, rotary_TH), ops.rotate(k_TKH, rotary_TH), v_TKH), w, cache, cfg, step)


def project(x_TD: Tensor, w: AttentionWeights, cfg: AttentionShape, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """x_TD -> queries [T, N, H], keys and values [T, K, H], as the matrices give them."""
    ops = step.ops
    q_TNH = ops.heads(ops.linear(x_TD, w.q, w.q_bias), cfg.num_heads)
    k_TKH = ops.heads(ops.linear(x_TD, w.k, w.k_bias), cfg.num_kv_heads)
    v_TKH = ops.heads(ops.linear(x_TD, w.v, w.v_bias), cfg.num_kv_heads)
    return q_TNH, k_TKH, v_TKH


def attend(
    qkv: tuple[Tensor, Tensor, Tensor], w: AttentionWeights, cache: Tensor, cfg: AttentionShape, step: Step, window: Window | None = None
) -> Tensor:
    """Finished queries [T, N, H], keys and values [T, K, H] -> y_TD. Writes the keys and values into `cache`.

    Named values: q, k, v, weights (the softmax), heads (what each head read), out.
    """
    ops = step.ops
    q_TNH, k_TKH, v_TKH = (ops.tap(f"{w.at}.{which}", x) for which, x in zip("qkv", qkv, strict=True))
    y_TNH = ops.attention(q_TNH, k_TKH, v_TKH, cache, cfg.head_width**-0.5, window=window, name=f"{w.at}.weights")
    y_TNH = ops.tap(f"{w.at}.heads", y_TNH)
    return ops.tap(f"{w.at}.out", ops.linear(ops.merge_heads(y_TNH), w.out, w.out_bias))


def ffn(x_TD: Tensor, w: FfnWeights, step: Step) -> Tensor:
    """x_TD -> down(silu(gate(x)) * up(x)). Named values: hidden, out."""
    ops = step.ops
    gate_TF = ops.linear(x_TD, w.gate, w.gate_bias)
    up_TF = ops.linear(x_TD, w.up, w.up_bias)
    return ops.tap(f"{w.at}.out", ops.linear(ops.tap(f"{w.at}.hidden", ops.silu_gate(gate_TF, up_TF)), w.down, w.down_bias))


def attention_tensors(at: str, cfg: AttentionShape, *, halved: bool = True) -> Iterator[TensorSpec]:
    """The weights of one attention, under the name `at`. `halved`: Hugging Face files keep the two halves of a head apart."""
    q_width, kv_width = cfg.num_heads * cfg.head_width, cfg.num_kv_heads * cfg.head_width
    q_rotary, k_rotary = (cfg.num_heads, cfg.num_kv_heads) if halved else (0, 0)
    yield TensorSpec(f"{at}.q", (q_width, cfg.width), rotary_heads=q_rotary)
    yield TensorSpec(f"{at}.k", (kv_width, cfg.width), rotary_heads=k_rotary)
    yield TensorSpec(f"{at}.v", (kv_width, cfg.width))
    yield TensorSpec(f"{at}.out", (cfg.width, q_width))
    if cfg.qkv_bias:
        yield TensorSpec(f"{at}.q_bias", (q_width,), Kind.BIAS, rotary_heads=q_rotary)
        yield TensorSpec(f"{at}.k_bias", (kv_width,), Kind.BIAS, rotary_heads=k_rotary)
        yield TensorSpec(f"{at}.v_bias", (kv_width,), Kind.BIAS)
    if cfg.out_bias:
        yield TensorSpec(f"{at}.out_bias", (cfg.width,), Kind.BIAS)


def attention_weights(at: str, cfg: AttentionShape, leaf: Leaf) -> AttentionWeights:
    """The tree that `attention` reads."""
    return AttentionWeights(
        at=at,
        q=leaf(f"{at}.q"),
        k=leaf(f"{at}.k"),
        v=leaf(f"{at}.v"),
        out=leaf(f"{at}.out"),
        q_bias=vector(leaf, f"{at}.q_bias") if cfg.qkv_bias else None,
        k_bias=vector(leaf, f"{at}.k_bias") if cfg.qkv_bias else None,
        v_bias=vector(leaf, f"{at}.v_bias") if cfg.qkv_bias else None,
        out_bias=vector(leaf, f"{at}.out_bias") if cfg.out_bias else None,
    )


def ffn_tensors(at: str, width: int, ffn_width: int, has_bias: bool) -> Iterator[TensorSpec]:
    """The weights of one feed-forward, under the name `at`."""
    yield TensorSpec(f"{at}.gate", (ffn_width, width))
    yield TensorSpec(f"{at}.up", (ffn_width, width))
    yield TensorSpec(f"{at}.down", (width, ffn_width))
    if has_bias:
        yield TensorSpec(f"{at}.gate_bias", (ffn_width,), Kind.BIAS)
        yield TensorSpec(f"{at}.up_bias", (ffn_width,), Kind.BIAS)
        yield TensorSpec(f"{at}.down_bias", (width,), Kind.BIAS)


def ffn_weights(at: str, has_bias: bool, leaf: Leaf) -> FfnWeights:
    """The tree that `ffn` reads."""
    return FfnWeights(
        at=at,
        gate=leaf(f"{at}.gate"),
        up=leaf(f"{at}.up"),
        down=leaf(f"{at}.down"),
        gate_bias=vector(leaf, f"{at}.gate_bias") if has_bias else None,
        up_bias=vector(leaf, f"{at}.up_bias") if has_bias else None,
        down_bias=vector(leaf, f"{at}.down_bias") if has_bias else None,
    )


def vector(leaf: Leaf, name: str) -> Vector:
    """The leaf of a norm or a bias: those are never quantised or adapted."""
    return cast(Vector, leaf(name))
