"""Records what a model function does: its operations as a list of nodes, in the order in which they were asked for.

The tensors that the model passes around are nodes, or a node seen as heads. What becomes of the list is `lower.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Sequence

from herd.backends.cpu.packed import PackedAdapted, PackedMatrix, PackedVector
from herd.errors import UsageError
from herd.models.ops import Window
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


@dataclass(frozen=True, slots=True, eq=False)
class Rotary(Node):
    frequencies: tuple[float, ...]
    magnitude: float


@dataclass(frozen=True, slots=True, eq=False)
class Norm(Node):
    weight: PackedVector | None
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class Linear(Node):
    matrix: PackedMatrix
    bias: PackedVector | None


@dataclass(frozen=True, slots=True, eq=False)
class Rotate(Node):
    """Inputs: what is rotated, and the Rotary."""

    num_heads: int


@dataclass(frozen=True, slots=True, eq=False)
class Attention(Node):
    """Inputs: queries, keys, values."""

    layer: int
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class SiluGate(Node):
    """Inputs: gate, up."""


@dataclass(frozen=True, slots=True, eq=False)
class Add(Node):
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Select(Node):
    pass


@dataclass(frozen=True, slots=True)
class Heads:
    """A node seen as [T, num_heads, width / num_heads]."""

    node: Node
    num_heads: int


TOKENS, POSITIONS, OUTPUT_ROWS = "tokens_T", "positions_T", "outputs_R"


class TracingOps:
    """`Ops` that computes nothing: `nodes` afterwards lists what was asked for. The cache of layer l is the integer l."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.names: list[str] = []

    def embed(self, tokens_T: str, table: PackedMatrix | PackedAdapted) -> Node:
        assert tokens_T == TOKENS
        if isinstance(table, PackedMatrix):
            return self._record(Embed((), table.shape[1], False, table))
        assert table.down_transposed is not None, "a table was packed as one"
        rows = self._record(Embed((), table.up.shape[1], False, table.up))
        return self.add(self.embed(tokens_T, table.base), self.linear(rows, table.down_transposed))

    def linear(self, x: Node, w: PackedMatrix | PackedAdapted, bias: PackedVector | None = None) -> Node:
        if isinstance(w, PackedMatrix):
            return self._record(Linear((x,), w.shape[0], x.outputs, w, bias))
        return self.add(self.linear(x, w.base, bias), self.linear(self.linear(x, w.down), w.up))

    def rms_norm(self, x: Node | Heads, weight: PackedVector | None, eps: float, *, centred: bool = False) -> Node:
        if isinstance(x, Heads) or centred:
            raise UsageError("The cpu backend has no norm over single heads; this architecture needs backend='reference'.")
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

    def attention(
        self, q_TNH: Heads, k_TKH: Heads, v_TKH: Heads, cache: int, scale: float, *, window: Window | None = None, name: str = ""
    ) -> Heads:
        if window is not None:
            raise UsageError("The cpu backend has no attention in windows; this architecture needs backend='reference'.")
        self.names.append(name)
        q = q_TNH.node
        node = self._record(Attention((q, k_TKH.node, v_TKH.node), q.width, q.outputs, cache, scale))
        return Heads(node, q_TNH.num_heads)

    def silu_gate(self, gate_TF: Node, up_TF: Node) -> Node:
        return self._record(SiluGate((gate_TF, up_TF), gate_TF.width, gate_TF.outputs))

    def add(self, x: Node, y: Node) -> Node:
        return self._record(Add((x, y), x.width, x.outputs))

    def select(self, x_TD: Node, rows_R: str) -> Node:
        assert rows_R == OUTPUT_ROWS
        return self._record(Select((x_TD,), x_TD.width, True))

    def tap(self, name: str, x: Node | Heads) -> Node | Heads:
        self.names.append(name)
        return x

    def _record(self, node: Node) -> Node:
        self.nodes.append(node)
        return node
