"""From traced nodes to a native program: which buffer holds what, and which operations run as one.

With `fuse`, when nothing else looks at the values in between:

  norm -> products                     the norm is part of preparing the products' input
  select -> norm -> product            so is the selection of rows
  q, k, v -> rotate -> attention       one instruction multiplies, rotates and writes to the cache
  gate, up -> silu_gate                one instruction
  x + product                          the product adds to x in place
  products of one value                one instruction, where none of the above takes them

Fused or not, the bits are the same (tests/backends/test_cpu_program.py). Buffers are taken when a value arises and given
back when its last user is done, so that all layers share a few of them.

What is only added to rows that see pictures is left out of steps without any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from herd import _core
from herd.backends.cpu.trace import (
    Add,
    Attention,
    CrossAttention,
    Embed,
    Experts,
    GatedAdd,
    Linear,
    LowRank,
    Node,
    Norm,
    Overlay,
    Rotary,
    Rotate,
    Select,
    SigmoidGate,
    SiluGate,
    SoftCap,
    Tap,
    Temper,
)
from herd.models.ops import Chunks, Window
from herd.records import dataclass

_Term = tuple[_core.Matrix, object, int, int, bool]


@dataclass(frozen=True, slots=True)
class Mark:
    """When instruction `end` is next, `buffer` holds the value of `node`; of attention also the queries, in `queries`."""

    end: int
    node: Tap | Attention
    buffer: int
    queries: int = -1


def lower(program: _core.Program, nodes: Sequence[Node], logits: Node, *, fuse: bool = True) -> list[Mark]:
    """Appends the instructions that compute `logits` to an empty program and finishes it. Says where to find what is tapped, and
    what attention reads and gives."""
    lowering = _Lowering(program, nodes, logits, fuse)
    lowering.run()
    return lowering.marks


class _Lowering:
    def __init__(self, program: _core.Program, nodes: Sequence[Node], logits: Node, fuse: bool) -> None:
        self._program = program
        self._nodes = nodes
        self._logits = logits
        self._fuse = fuse
        self._users: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in nodes:
            for source in node.inputs:
                self._users[source].append(node)
        self._users[logits].append(logits)
        self._left = Counter({node: len(users) for node, users in self._users.items()})
        self._buffers: dict[Node, int] = {}
        self._prepared: dict[tuple[Node, int], int] = {}
        self._free: dict[tuple[str, int, bool], list[int]] = {}
        self._rooms: dict[tuple[object, ...], int] = {}
        self.marks: list[Mark] = []
        # A tapped value must be right in every step.
        self._if_seen = set[Node]() if any(isinstance(node, Tap) for node in nodes) else _only_if_seen(nodes, self._users)
        self._postponed = self._choose_postponed() if fuse else set[Node]()

    def run(self) -> None:
        for node in self._nodes:
            if node not in self._postponed and node not in self._buffers:
                self._emit(node)
        if not isinstance(self._logits, Linear | Add):
            self._program.check_finite(self._buffers[self._logits])
        self._program.finish(self._buffers[self._logits])

    # What is computed where it is used

    def _choose_postponed(self) -> set[Node]:
        postponed: set[Node] = set()
        for node in self._nodes:
            match node:
                case Norm(num_heads=1) if all(isinstance(user, Linear) for user in self._users[node]):
                    postponed.add(node)
                case Attention() if self._is_fusable(node):
                    q, k, v = node.inputs
                    postponed |= {q, k, v, q.inputs[0], k.inputs[0]}
                case SiluGate(inputs=(Linear() as gate, Linear() as up)) if gate is not up and self._is_only_for(node, gate, up):
                    postponed |= {gate, up}
                case Add(inputs=(x, Linear() as product)) if x is not product and self._is_only_for(node, product):
                    postponed.add(product)
        for node in self._nodes:
            if isinstance(node, Select) and all(user in postponed and isinstance(user, Norm) for user in self._users[node]):
                postponed.add(node)
        return postponed

    def _is_only_for(self, user: Node, *nodes: Node) -> bool:
        return all(self._users[node] == [user] for node in nodes)

    def _is_fusable(self, node: Attention) -> bool:
        q, k, v = node.inputs
        if not (isinstance(q, Rotate) and isinstance(k, Rotate) and isinstance(v, Linear)) or q.inputs[1] is not k.inputs[1]:
            return False
        products = (q.inputs[0], k.inputs[0])
        return (
            all(isinstance(product, Linear) for product in products)
            and len({q, k, v, *products}) == 5
            and self._is_only_for(node, q, k, v)
            and self._is_only_for(q, products[0])
            and self._is_only_for(k, products[1])
        )

    # Buffers

    def _take(self, node: Node) -> int:
        free = self._free.get(("floats", node.width, node.outputs))
        buffer = free.pop() if free else self._program.buffer(node.width, node.outputs)
        self._buffers[node] = buffer
        return buffer

    def _take_over(self, node: Node, x: Node) -> int:
        """A buffer for `node`, which is made of x row by row: that of x if nobody else wants it."""
        if self._left[x] > 1:
            return self._take(node)
        buffer = self._buffers[node] = self._buffers.pop(x)
        return buffer

    def _done_with(self, *nodes: Node) -> None:
        """One user of each is done; what nobody needs any more is given back."""
        for node in nodes:
            self._left[node] -= 1
            if self._left[node] == 0:
                self._give_back(node)

    def _give_back(self, node: Node) -> None:
        if node in self._buffers:
            self._free.setdefault(("floats", node.width, node.outputs), []).append(self._buffers.pop(node))
        for key in [key for key in self._prepared if key[0] is node]:
            self._free.setdefault((f"form {key[1]}", node.width, node.outputs), []).append(self._prepared.pop(key))
        if node in self._postponed and isinstance(node, Norm | Select):
            self._done_with(*node.inputs)

    # Instructions

    def _emit(self, node: Node) -> None:
        program = self._program
        program.only_if_seen(node in self._if_seen)
        match node:
            case Attention():
                self._attention(node)
            case SiluGate():
                self._silu_gate(node)
            case Add():
                self._add(node)
            case Experts():
                self._experts(node)
            case Linear():
                self._products([node, *self._siblings(node)])
            case LowRank():
                self._low_rank(node)
            case _:
                self._by_rows(node)
                self._done_with(*node.inputs)

    def _siblings(self, node: Linear) -> list[Linear]:
        """Later products of the same value, which may as well run now."""
        if not self._fuse or node is self._logits:
            return []
        later = self._users[node.inputs[0]]
        return [
            each
            for each in later[later.index(node) + 1 :]
            if isinstance(each, Linear)
            and not (each in self._postponed or each is self._logits or (each in self._if_seen) != (node in self._if_seen))
        ]

    def _products(self, nodes: Sequence[Linear]) -> None:
        terms = [self._term(node, self._take(node)) for node in nodes]
        self._program.product(terms, after=self._after(nodes[0]), label=", ".join(_label(node) for node in nodes))
        for node in nodes:
            self._done_with(*node.inputs)

    def _by_rows(self, node: Node) -> None:
        """What treats every row alike. Most of it may happen in place."""
        program, buffers = self._program, self._buffers
        sources = [buffers[x] for x in node.inputs if x in buffers]
        is_new = isinstance(node, Embed | Rotary | Select | CrossAttention)
        out = self._take(node) if is_new else self._take_over(node, node.inputs[0])
        match node:
            case Embed(table=table, aliases=aliases):
                program.embed(table.native, out, list(aliases))
            case Rotary(frequencies=frequencies, magnitude=magnitude):
                program.rotary(list(frequencies), magnitude, out)
            case Norm(weight=weight, eps=eps, num_heads=num_heads):
                program.norm(sources[0], None if weight is None else weight.values, eps, out, num_heads)
            case Rotate(num_heads=num_heads):
                program.rotate(sources[0], sources[1], out, num_heads)
            case Temper(floor=floor, scale=scale):
                program.temper(sources[0], floor, scale, out)
            case CrossAttention(layer=layer, num_heads=num_heads, scale=scale):
                program.cross_attention(sources[0], layer, num_heads, scale, out)
            case GatedAdd(factor=factor, if_seen=if_seen):
                program.gated_add(sources[0], sources[1], factor, if_seen, out)
            case SigmoidGate():
                program.sigmoid_gate(sources[0], sources[1], out)
            case SoftCap(factor=factor, cap=cap):
                program.soft_cap(sources[0], factor, cap, out)
            case Overlay():
                program.overlay(sources[0], out)
            case Select():
                program.select(sources[0], out)
            case Tap():
                if out != sources[0]:
                    program.copy(sources[0], out)
                self.marks.append(Mark(program.num_instructions, node, out))
            case _:
                raise AssertionError(f"no instruction for {type(node).__name__}")

    def _after(self, node: Node) -> str:
        return "check_finite" if node is self._logits else "nothing"

    def _term(self, node: Node, out: int, *, accumulate: bool = False) -> _Term:
        assert isinstance(node, Linear)
        return node.matrix.native, None if node.bias is None else node.bias.values, self._input(node), out, accumulate

    def _input(self, node: Linear) -> int:
        """The prepared rows that this product multiplies: made for the first product that wants them."""
        (x,) = node.inputs
        form = self._program.form(node.matrix.native)
        if (x, form) not in self._prepared:
            free = self._free.get((f"form {form}", x.width, x.outputs))
            made = free.pop() if free else self._program.prepared(node.matrix.native, x.outputs)
            self._prepared[x, form] = made
            self._prepare(x, made, node)
        return self._prepared[x, form]

    def _prepare(self, x: Node, out: int, user: Node) -> None:
        """For `user` and whoever else wants it prepared alike."""
        self._program.only_if_seen(x in self._if_seen)
        if x in self._postponed:
            self._prepare_norm(x, out)
        else:
            self._program.prepare(self._buffers[x], out)
        self._program.only_if_seen(user in self._if_seen)

    def _prepare_norm(self, x: Node, out: int) -> None:
        assert isinstance(x, Norm)
        source = x.inputs[0]
        if source in self._postponed:
            source = source.inputs[0]
        weight = None if x.weight is None else x.weight.values
        self._program.norm_prepare(self._buffers[source], weight, x.eps, out)

    def _attention(self, node: Attention) -> None:
        program, (q, k, v) = self._program, node.inputs
        if q in self._postponed:
            products, rotary = (q.inputs[0], k.inputs[0], v), q.inputs[1]
            terms = [self._term(product, self._take(value)) for product, value in zip(products, (q, k, v), strict=True)]
            program.product(terms, after="attention_inputs", rotary=self._buffers[rotary], layer=node.layer, label="q, k, v")
            for product in products:
                self._done_with(*product.inputs)
            self._done_with(rotary, rotary)
        else:
            program.store(self._buffers[k], self._buffers[v], node.layer)
        out = self._take(node)
        program.attention(self._buffers[q], node.layer, node.scale, out, *_window(node.window))
        self.marks.append(Mark(program.num_instructions, node, out, self._buffers[q]))
        self._done_with(q, k, v)

    def _silu_gate(self, node: SiluGate) -> None:
        gate, up = node.inputs
        if gate in self._postponed:
            out = self._take(node)
            terms = [self._term(gate, out), self._term(up, self._take(up))]
            self._program.product(terms, after="silu_gate", label="gate, up")
            self._done_with(*gate.inputs, *up.inputs, up)
            return
        self._program.silu_gate(self._buffers[gate], self._buffers[up], self._take(node))
        self._done_with(gate, up)

    def _low_rank(self, node: LowRank) -> None:
        x, y = node.inputs
        updates = [None if each is None else (each[0].native, each[1].native) for each in node.updates]
        source, out = self._buffers[x], self._take_over(node, y)
        self._program.low_rank(source, updates, out)
        self._done_with(x, y)

    def _experts(self, node: Experts) -> None:
        x, scores = node.inputs
        gates, ups, downs = node.gate.each(), node.up.each(), node.down.each()
        forms = [self._program.form(matrices[0]) for matrices in (gates, ups, downs)]
        key = (*forms, node.gate.rows, x.width, len(gates), node.num_chosen)
        if key not in self._rooms:
            self._rooms[key] = self._program.expert_room(gates[0], ups[0], downs[0], len(gates), node.num_chosen)
        router = scores.matrix.native if isinstance(scores, Linear) else None
        self._program.experts(self._buffers[x], self._buffers[scores], gates, ups, downs, self._rooms[key], self._take(node), router)
        self._done_with(x, scores)

    def _add(self, node: Add) -> None:
        x, y = node.inputs
        if y in self._postponed and self._left[x] == 1 and not _looks_at(y, x):
            self._buffers[node] = self._buffers.pop(x)
            term = self._term(y, self._buffers[node], accumulate=True)
            self._program.product([term], after=self._after(node), label=_label(y))
            self._left[x] = 0
            self._done_with(*y.inputs)
            return
        if y in self._postponed:
            self._emit(y)
        self._program.add(self._buffers[x], self._buffers[y], self._take(node))
        if node is self._logits:
            self._program.check_finite(self._buffers[node])
        self._done_with(x, y)


def _only_if_seen(nodes: Sequence[Node], users: dict[Node, list[Node]]) -> set[Node]:
    """What serves nothing but to be added to rows that see pictures."""
    found = set[Node]()

    def serves(node: Node, user: Node) -> bool:
        return user in found or (isinstance(user, GatedAdd) and user.if_seen and user.inputs[0] is not node)

    for node in reversed(nodes):
        if users[node] and all(serves(node, user) for user in users[node]):
            found.add(node)
    return found


def _window(window: Window | None) -> tuple[str, int]:
    match window:
        case None:
            return "past", 0
        case Chunks(tokens):
            return "chunks", tokens
        case _:
            return "sliding", window.tokens


def _looks_at(product: Node, x: Node) -> bool:
    """Whether preparing the product's input reads x."""
    (source,) = product.inputs
    return source is x or (isinstance(source, Norm) and x in (source.inputs[0], *source.inputs[0].inputs))


def _label(node: Node) -> str:
    assert isinstance(node, Linear)
    rows, columns = node.matrix.shape
    return f"product {rows} x {columns}"
