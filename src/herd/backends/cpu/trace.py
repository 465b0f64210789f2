"""Records what a model function does: its operations as a list of nodes, in the order in which they were asked for.

The tensors that the model passes around are nodes, or a node seen as heads. What becomes of the list is `lower.py`'s matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import cast

from herd.backends.cpu.packed import PackedAdapted, PackedExperts, PackedMatrix, PackedVector, Updates, from_one
from herd.models.ops import NO_ALIASES, Window
from herd.models.ops import Experts as ExpertWeights
from herd.records import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value: float32 rows `width` wide, one per token of a step or (`outputs`) one per row of logits."""

    inputs: tuple[Node, ...]
    width: int
    outputs: bool


@dataclass(frozen=True, slots=True, eq=False)
class Embed(Node):
    table: PackedMatrix
    aliases: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Rotary(Node):
    frequencies: tuple[float, ...]
    magnitude: float


@dataclass(frozen=True, slots=True, eq=False)
class Norm(Node):
    """Of each of `num_heads` parts of a row by itself."""

    weight: PackedVector | None
    eps: float
    num_heads: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Linear(Node):
    matrix: PackedMatrix
    bias: PackedVector | None


@dataclass(frozen=True, slots=True, eq=False)
class LowRank(Node):
    """Inputs: x, and the product of x with a matrix. `updates` of that matrix, one for each adapter that spans may name."""

    updates: Updates


@dataclass(frozen=True, slots=True, eq=False)
class Rotate(Node):
    """Inputs: what is rotated, and the Rotary."""

    num_heads: int


@dataclass(frozen=True, slots=True, eq=False)
class Temper(Node):
    floor: float
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Attention(Node):
    """Inputs: queries, keys, values."""

    layer: int
    scale: float
    window: Window | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class CrossAttention(Node):
    """Input: queries, `num_heads` of them. `layer` counts the crossing layers."""

    layer: int
    num_heads: int
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class GatedAdd(Node):
    """Inputs: x, and what is added `factor` times; `if_seen`: in rows that see a picture."""

    factor: float
    if_seen: bool


@dataclass(frozen=True, slots=True, eq=False)
class SiluGate(Node):
    """Inputs: gate, up."""


@dataclass(frozen=True, slots=True, eq=False)
class SigmoidGate(Node):
    """Inputs: x, gate."""


@dataclass(frozen=True, slots=True, eq=False)
class Experts(Node):
    """Inputs: x, scores."""

    gate: PackedExperts
    up: PackedExperts
    down: PackedExperts
    num_chosen: int


@dataclass(frozen=True, slots=True, eq=False)
class SoftCap(Node):
    factor: float
    cap: float


@dataclass(frozen=True, slots=True, eq=False)
class Add(Node):
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Overlay(Node):
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Select(Node):
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Tap(Node):
    """Its input, at a place where somebody reads or replaces it; `num_heads` if it is seen as heads there."""

    name: str
    num_heads: int | None


@dataclass(frozen=True, slots=True)
class Heads:
    """A node seen as [T, num_heads, width / num_heads]."""

    node: Node
    num_heads: int


TOKENS, POSITIONS, OUTPUT_ROWS, PICTURES, SEEN = "tokens_T", "positions_T", "outputs_R", "pictures", "seen_T"


@dataclass
class TracingOps:
    """`Ops` that computes nothing: `nodes` afterwards lists what was asked for, `names` the values that have names. The cache of
    layer l is the integer l, and so is the memory of crossing layer l. Only names in `watched` become nodes. `updates`: of matrices that
    adapters of single spans change."""

    watched: frozenset[str] = frozenset()
    updates: Mapping[PackedMatrix | PackedAdapted, Updates] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def embed(self, tokens_T: str, table: PackedMatrix | PackedAdapted, *, aliases: Mapping[int, int] = NO_ALIASES) -> Node:
        assert tokens_T == TOKENS
        if isinstance(table, PackedMatrix):
            return self._record(Embed((), table.shape[1], False, table, tuple(aliases.items())))
        assert table.down_transposed is not None, "a table was packed as one"
        rows = self._record(Embed((), table.up.shape[1], False, table.up, tuple(aliases.items())))
        return self.add(self.embed(tokens_T, table.base, aliases=aliases), self.linear(rows, table.down_transposed))

    def linear(self, x: Node, w: PackedMatrix | PackedAdapted, bias: PackedVector | None = None) -> Node:
        updates = self.updates.get(w)
        if updates is not None:
            assert not x.outputs, "adapters change what tokens compute"
            y = self._linear(x, w, bias)
            return self._record(LowRank((x, y), y.width, y.outputs, updates))
        return self._linear(x, w, bias)

    def _linear(self, x: Node, w: PackedMatrix | PackedAdapted, bias: PackedVector | None) -> Node:
        if isinstance(w, PackedMatrix):
            return self._record(Linear((x,), w.shape[0], x.outputs, w, bias))
        return self.add(self.linear(x, w.base, bias), self.linear(self.linear(x, w.down), w.up))

    def rms_norm(self, x: Node | Heads, weight: PackedVector | None, eps: float, *, centred: bool = False) -> Node | Heads:
        if centred and weight is not None:
            weight = from_one(weight)
        if isinstance(x, Heads):
            node = x.node
            return Heads(self._record(Norm((node,), node.width, node.outputs, weight, eps, x.num_heads)), x.num_heads)
        return self._record(Norm((x,), x.width, x.outputs, weight, eps))

    def heads(self, x: Node, num_heads: int) -> Heads:
        return Heads(x, num_heads)

    def merge_heads(self, x_TNH: Heads) -> Node:
        return x_TNH.node

    def rotary(self, positions_T: str, frequencies: Sequence[float], magnitude: float) -> Node:
        assert positions_T == POSITIONS
        return self._record(Rotary((), 2 * len(frequencies), False, tuple(frequencies), magnitude))

    def rotate(self, x_TNH: Heads, rotary_TH: Node) -> Heads:
        x = x_TNH.node
        return Heads(self._record(Rotate((x, rotary_TH), x.width, x.outputs, x_TNH.num_heads)), x_TNH.num_heads)

    def temper(self, x_TNH: Heads, positions_T: str, floor: float, scale: float) -> Heads:
        assert positions_T == POSITIONS
        x = x_TNH.node
        return Heads(self._record(Temper((x,), x.width, x.outputs, floor, scale)), x_TNH.num_heads)

    def attention(
        self, q_TNH: Heads, k_TKH: Heads, v_TKH: Heads, cache: int, scale: float, *, window: Window | None = None, name: str = ""
    ) -> Heads:
        if name:
            self.names.append(name)
        q = q_TNH.node
        node = self._record(Attention((q, k_TKH.node, v_TKH.node), q.width, q.outputs, cache, scale, window, name))
        return Heads(node, q_TNH.num_heads)

    def cross_attention(self, q_TNH: Heads, memory: int, scale: float) -> Heads:
        q, heads = q_TNH.node, q_TNH.num_heads
        return Heads(self._record(CrossAttention((q,), q.width, q.outputs, memory, heads, scale)), heads)

    def gated_add(self, x: Node, y: Node, gate: PackedVector, seen: str | None = None) -> Node:
        return self._record(GatedAdd((x, y), x.width, x.outputs, math.tanh(gate.values[0]), seen is not None))

    def silu_gate(self, gate_TF: Node, up_TF: Node) -> Node:
        return self._record(SiluGate((gate_TF, up_TF), gate_TF.width, gate_TF.outputs))

    def sigmoid_gate(self, x: Node, gate: Node) -> Node:
        return self._record(SigmoidGate((x, gate), x.width, x.outputs))

    def experts(self, x_TD: Node, scores_TE: Node, w: ExpertWeights, num_chosen: int) -> Node:
        gate, up, down = (cast(PackedExperts, each) for each in (w.gate, w.up, w.down))
        return self._record(Experts((x_TD, scores_TE), x_TD.width, x_TD.outputs, gate, up, down, num_chosen))

    def soft_cap(self, x: Node, factor: float, cap: float) -> Node:
        return self._record(SoftCap((x,), x.width, x.outputs, factor, cap))

    def add(self, x: Node, y: Node) -> Node:
        return self._record(Add((x, y), x.width, x.outputs))

    def overlay(self, x_TD: Node, pictures: str) -> Node:
        assert pictures == PICTURES
        return self._record(Overlay((x_TD,), x_TD.width, False))

    def select(self, x_TD: Node, rows_R: str) -> Node:
        assert rows_R == OUTPUT_ROWS
        return self._record(Select((x_TD,), x_TD.width, True))

    def tap(self, name: str, x: Node | Heads) -> Node | Heads:
        self.names.append(name)
        if name not in self.watched:
            return x
        if isinstance(x, Heads):
            return Heads(self._record(Tap((x.node,), x.node.width, x.node.outputs, name, x.num_heads)), x.num_heads)
        return self._record(Tap((x,), x.width, x.outputs, name, None))

    def _record(self, node: Node) -> Node:
        self.nodes.append(node)
        return node
