"""The operations that every model is written in. A backend is an implementation of them.

Shapes use the legend of docs/shapes.md: `T` tokens of this step (all sequences packed one after another), `R` rows whose
logits are wanted, `D` width, `F` ffn width, `V` vocabulary, `N` query heads, `K` kv heads, `H` head width.

A `Tensor` belongs to the backend: numpy arrays in `backends/reference`, names of buffers while `backends/cpu` traces. A model may
only pass it on; what it needs to know about shapes it knows from its config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from herd.models.weights import Matrix, Vector

Tensor = Any


class Ops(Protocol):
    """The contract of a backend. Every function returns a new tensor and changes none of its arguments, except the
    cache that `attention` is told to write to."""

    def embed(self, tokens_T: Tensor, table: Matrix) -> Tensor:
        """Rows of `table` [V, D] at integer `tokens_T` -> [T, D]."""
        ...

    def linear(self, x: Tensor, w: Matrix, bias: Vector | None = None) -> Tensor:
        """x [T, in], w [out, in], bias [out] -> x w^T + bias [T, out]. Looks at the leaf: dense, blocks or adapted."""
        ...

    def rms_norm(self, x_TD: Tensor, weight: Vector | None, eps: float) -> Tensor:
        """x / sqrt(mean(x^2, last axis) + eps) * weight (arXiv 1910.07467). Without weight: the last step is left out."""
        ...

    def heads(self, x: Tensor, num_heads: int) -> Tensor:
        """[T, num_heads * H] -> [T, num_heads, H]."""
        ...

    def merge_heads(self, x_TNH: Tensor) -> Tensor:
        """[T, N, H] -> [T, N * H]."""
        ...

    def rotary(self, positions_T: Tensor, frequencies: Sequence[float], magnitude: float) -> Tensor:
        """Angles for `rotate`: cos and sin of position * frequency, each times `magnitude`. `frequencies` has H/2 entries
        (or fewer: the rest of the head then keeps its values)."""
        ...

    def rotate(self, x_TNH: Tensor, rotary_TH: Tensor) -> Tensor:
        """Rotary positions (arXiv 2104.09864) on interleaved pairs (x[2i], x[2i+1]), Meta's layout."""
        ...

    def attention(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: Tensor, scale: float) -> Tensor:
        """Writes `k`, `v` to `cache` at this step's positions, then causal softmax(scale q k^T) v over everything of
        the token's own sequence -> [T, N, H]. Query head n reads kv head n // (N / K)."""
        ...

    def silu_gate(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        """silu(gate) * up, with silu(z) = z / (1 + exp(-z)) (arXiv 2002.05202)."""
        ...

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, same shape."""
        ...

    def select(self, x_TD: Tensor, rows_R: Tensor) -> Tensor:
        """The rows of x whose logits are wanted -> [R, D]."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One forward of a packed batch, as a model function sees it. The backend makes it; its fields are the backend's tensors.

    `cache[l]` is the place of layer `l`'s keys and values; `outputs_R` the rows of T whose logits are wanted.
    """

    ops: Ops
    tokens_T: Tensor
    positions_T: Tensor
    outputs_R: Tensor
    cache: Sequence[Tensor]
