"""The operations that every model is written in. A backend is an implementation of them.

Shapes use the legend of docs/shapes.md: `T` tokens of this step (all sequences packed one after another), `R` rows whose
logits are wanted, `D` width, `F` ffn width, `V` vocabulary, `N` query heads, `K` kv heads, `H` head width, `E` experts, `I` rows
of a picture.

A `Tensor` belongs to the backend: numpy arrays in `backends/reference`, names of buffers while `backends/cpu` traces. A model may
only pass it on; what it needs to know about shapes it knows from its config.

`Ops` is what language models are made of; `PictureOps` adds what picture encoders and classifiers need, which see all of
their rows at once and have no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from herd.models.weights import Matrix, Vector
from herd.records import dataclass

Tensor = Any
NO_ALIASES: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Chunks:
    """Attention inside aligned chunks: the token at position p sees keys at t <= p with t // tokens == p // tokens."""

    tokens: int

    def first(self, position: int) -> int:
        """The lowest position that the token at `position` sees. It never falls as positions rise."""
        return position - position % self.tokens


@dataclass(frozen=True, slots=True)
class Sliding:
    """Attention to the last `tokens` positions, the token's own included: t > p - tokens."""

    tokens: int

    def first(self, position: int) -> int:
        """As of `Chunks`."""
        return max(0, position - self.tokens + 1)


Window = Chunks | Sliding


@dataclass(frozen=True, slots=True)
class Experts:
    """The matrices of all experts of one layer: gate and up [E, F, D], down [E, D, F]."""

    gate: Matrix
    up: Matrix
    down: Matrix


class Ops(Protocol):
    """The contract of a backend. Every function returns a new tensor and changes none of its arguments, except the
    cache that `attention` is told to write to."""

    def embed(self, tokens_T: Tensor, table: Matrix, *, aliases: Mapping[int, int] = NO_ALIASES) -> Tensor:
        """Rows of `table` [V, D] at integer `tokens_T` -> [T, D]. A token in `aliases` reads the row that it is mapped to."""
        ...

    def linear(self, x: Tensor, w: Matrix, bias: Vector | None = None) -> Tensor:
        """x [T, in], w [out, in], bias [out] -> x w^T + bias [T, out]. Looks at the leaf: dense, blocks or adapted."""
        ...

    def rms_norm(self, x: Tensor, weight: Vector | None, eps: float, *, centred: bool = False) -> Tensor:
        """x / sqrt(mean(x^2, last axis) + eps) * weight (arXiv 1910.07467); x [T, D], or [T, N, H] for a norm of each head.
        Without weight: the last step is left out. `centred`: the weight counts from one, so it multiplies by 1 + weight."""
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

    def temper(self, x_TNH: Tensor, positions_T: Tensor, floor: float, scale: float) -> Tensor:
        """x * (1 + scale * ln(floor((position + 1) / floor) + 1)), the same for all heads of a token."""
        ...

    def attention(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: Tensor, scale: float, *, window: Window | None = None, name: str = ""
    ) -> Tensor:
        """Writes `k`, `v` to `cache` at this step's positions, then causal softmax(scale q k^T) v over everything of
        the token's own sequence that `window` lets it see -> [T, N, H]. Query head n reads kv head n // (N / K). The softmax
        can be read under `name` as if it were tapped."""
        ...

    def cross_attention(self, q_TNH: Tensor, memory: Tensor, scale: float) -> Tensor:
        """softmax(scale q k^T) v over the keys and values that `memory` (an entry of `step.memory`) holds for each token: the
        pictures that the token sees -> [T, N, H]. Zeros for a token that sees none."""
        ...

    def gated_add(self, x: Tensor, y: Tensor, gate: Vector, seen: Tensor | None = None) -> Tensor:
        """x + tanh(gate) * y, with one gate [1]. `seen` (`step.seen`): only in rows of tokens that see a picture."""
        ...

    def silu_gate(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        """silu(gate) * up, with silu(z) = z / (1 + exp(-z)) (arXiv 2002.05202)."""
        ...

    def sigmoid_gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """x * sigmoid(gate), same shape."""
        ...

    def experts(self, x_TD: Tensor, scores_TE: Tensor, w: Experts, num_chosen: int) -> Tensor:
        """For each token the `num_chosen` experts of highest score (the lower number first among equals), each applied to
        sigmoid(score) * x as down(silu(gate(x)) * up(x)); their sum -> [T, D]. The sigmoid multiplies the expert's *input*."""
        ...

    def soft_cap(self, x: Tensor, factor: float, cap: float) -> Tensor:
        """cap * tanh(factor * x / cap)."""
        ...

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, same shape."""
        ...

    def overlay(self, x_TD: Tensor, pictures: Tensor) -> Tensor:
        """x with the rows of picture tokens replaced by what `encode` gave for them (`pictures` is `step.pictures`)."""
        ...

    def select(self, x_TD: Tensor, rows_R: Tensor) -> Tensor:
        """The rows of x whose logits are wanted -> [R, D]."""
        ...

    def tap(self, name: str, x: Tensor) -> Tensor:
        """x itself. Gives the value a name by which a researcher may read or replace it (`Model.trace`, `Model.patch`)."""
        ...


class PictureOps(Protocol):
    """What encoders need: everything is known at once, no cache, no positions but those that are given as numbers."""

    def patches(self, pixels: Tensor, size: int, frames: int = 1) -> Tensor:
        """Tiles [tiles, 3, height, width] -> [tiles * patches, 3 * size * size], patches row by row, channel outermost in each.
        `frames`: so many consecutive tiles share a patch, one after another in it; a single tile stands for all of them."""
        ...

    def embed(self, tokens: Sequence[int], table: Matrix) -> Tensor:
        """Rows of `table` [V, D] -> [I, D]."""
        ...

    def mix(self, table: Matrix, rows: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> Tensor:
        """For each entry the sum of the named rows of `table`, each times its share -> [I, D]."""
        ...

    def linear(self, x: Tensor, w: Matrix, bias: Vector | None = None) -> Tensor:
        """As `Ops.linear`."""
        ...

    def layer_norm(self, x_ID: Tensor, weight: Vector, bias: Vector, eps: float) -> Tensor:
        """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (arXiv 1607.06450)."""
        ...

    def rms_norm(self, x: Tensor, weight: Vector | None, eps: float, *, centred: bool = False) -> Tensor:
        """As `Ops.rms_norm`."""
        ...

    def gelu(self, x: Tensor) -> Tensor:
        """x * Phi(x) with the exact error function (arXiv 1606.08415)."""
        ...

    def tanh(self, x: Tensor) -> Tensor: ...

    def heads(self, x: Tensor, num_heads: int) -> Tensor:
        """As `Ops.heads`."""
        ...

    def merge_heads(self, x_INH: Tensor) -> Tensor:
        """As `Ops.merge_heads`."""
        ...

    def angles(self, angles: Sequence[Sequence[float]]) -> Tensor:
        """Angles [I, H/2] for `rotate`, given outright."""
        ...

    def rotate(self, x_INH: Tensor, rotary_IH: Tensor) -> Tensor:
        """As `Ops.rotate`."""
        ...

    def attend(
        self, q_INH: Tensor, k_IKH: Tensor, v_IKH: Tensor, scale: float, lengths: Sequence[int], padding: Sequence[bool] | None = None
    ) -> Tensor:
        """softmax(scale q k^T) v in both directions inside consecutive groups of rows, `lengths` of them -> [I, N, H].
        `padding`: a padding row does not see padding rows (all other pairs see each other); it still gets a value."""
        ...

    def relative_attend(
        self, q_INH: Tensor, k_INH: Tensor, v_INH: Tensor, near_kNH: Tensor, near_qNH: Tensor, buckets: Sequence[Sequence[int]]
    ) -> Tensor:
        """DeBERTa's disentangled attention (arXiv 2006.03654) over all rows: scores of content to content, content to position
        (q with `near_k` [buckets, N, H]) and position to content (k with `near_q`), all divided by sqrt(3 H); `buckets[i][j]`
        is the row for query i and key j, and for position to content that of key j and query i -> [I, N, H]."""
        ...

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, same shape."""
        ...

    def gated_add(self, x: Tensor, y: Tensor, gate: Vector) -> Tensor:
        """x + tanh(gate) * y, with one gate [1]."""
        ...

    def rows(self, x: Tensor, index: Sequence[int]) -> Tensor:
        """The rows of x at `index`, in that order, as often as they are named."""
        ...

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows of all parts, one part after another."""
        ...

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Columns of all parts side by side: [I, a], [I, b] -> [I, a + b]."""
        ...

    def fold(self, x: Tensor, count: int, *, by_column: bool = False) -> Tensor:
        """[I * count, D] -> [I, count * D]: each `count` consecutive rows become one, one after another, or (`by_column`) all
        values of column 0, then all of column 1, ..."""
        ...


def as_it_stands(layer: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`layer` of its arguments, simply."""
    return layer(*arguments)


@dataclass(frozen=True, slots=True)
class Step:
    """One forward of a packed batch, as a model function sees it. The backend makes it; its fields are the backend's tensors.

    `cache[l]` is the place of layer `l`'s keys and values; `outputs_R` the rows of T whose logits are wanted. For models that take
    pictures: `pictures` (early fusion) is for `overlay`; `memory[c]` the pictures' keys and values in crossing layer `c`, and `seen`
    which tokens see a picture at all. `run` computes a layer from its function and arguments; training may forget what lies inside and
    compute it a second time on the way back.
    """

    ops: Ops
    tokens_T: Tensor
    positions_T: Tensor
    outputs_R: Tensor
    cache: Sequence[Tensor]
    pictures: Tensor = None
    memory: Sequence[Tensor] = ()
    seen: Tensor = None
    run: Callable[..., Tensor] = as_it_stands


@dataclass(frozen=True, slots=True)
class PictureStep:
    """One picture on its way through an encoder: `pixels` [tiles, 3, height, width], normalised; tiles in a grid of `rows` x
    `columns`, row by row, and after them, where the release has one, the whole picture in one tile."""

    ops: PictureOps
    pixels: Tensor
    tiles: int
    height: int
    width: int
    rows: int
    columns: int
