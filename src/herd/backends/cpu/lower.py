"""From traced nodes to a native program: which buffer holds what, and which operations run as one.

With `fuse`, when nothing else looks at the values in between:

  norm -> products                     the norm is part of preparing the products' input
  select -> norm -> product            so is the selection of rows
  q, k, v -> rotate -> attention       one instruction multiplies, rotates and writes to the cache
  gate, up -> silu_gate                one instruction
  x + product                          the product adds to x in place

Fused or not, the bits are the same (tests/backends/test_cpu_program.py). Buffers are taken when a value arises and given
back when its last user is done, so that all layers share a few of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from herd import _core
from herd.backends.cpu.trace import Add, Attention, Embed, Linear, Node, Norm, Rotary, Rotate, Select, SiluGate

_Term = tuple[_core.Matrix, object, int, int, bool]


def lower(program: _core.Program, nodes: Sequence[Node], logits: Node, *, fuse: bool = True) -> None:
    """Appends the instructions that compute `logits` to an empty program and finishes it."""
    _Lowering(program, nodes, logits, fuse).run()


class _Lowering:
    def __init__(self, program: _core.Program, nodes: Sequence[Node], logits: Node, fuse: bool) -> None:
        self._program = program
        self._nodes = nodes
        self._logits = logits
        self._users: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in nodes:
            for source in node.inputs:
                self._users[source].append(node)
        self._users[logits].append(logits)
        self._left = Counter({node: len(users) for node, users in self._users.items()})
        self._buffers: dict[Node, int] = {}
        self._prepared: dict[tuple[Node, int], int] = {}
        self._free: dict[tuple[str, int, bool], list[int]] = {}
        self._postponed = self._choose_postponed() if fuse else set[Node]()

    def run(self) -> None:
        for node in self._nodes:
            if node not in self._postponed:
                self._emit(node)
        self._program.finish(self._buffers[self._logits])

    # What is computed where it is used

    def _choose_postponed(self) -> set[Node]:
        postponed: set[Node] = set()
        for node in self._nodes:
            match node:
                case Norm() if all(isinstance(user, Linear) for user in self._users[node]):
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
        match node:
            case Embed(table=table):
                program.embed(table.native, self._take(node))
            case Rotary(frequencies=frequencies, magnitude=magnitude):
                program.rotary(list(frequencies), magnitude, self._take(node))
            case Norm(inputs=(x,), weight=weight, eps=eps):
                program.norm(self._buffers[x], None if weight is None else weight.values, eps, self._take(node))
            case Linear():
                program.product([self._term(node, self._take(node))], after=self._after(node), label=_label(node))
            case Rotate(inputs=(x, rotary), num_heads=num_heads):
                program.rotate(self._buffers[x], self._buffers[rotary], self._take(node), num_heads)
            case Attention():
                self._attention(node)
                return
            case SiluGate():
                self._silu_gate(node)
                return
            case Add():
                self._add(node)
                return
            case Select(inputs=(x,)):
                program.select(self._buffers[x], self._take(node))
            case _:
                raise AssertionError(f"no instruction for {type(node).__name__}")
        self._done_with(*node.inputs)

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
            self._prepare(x, made)
        return self._prepared[x, form]

    def _prepare(self, x: Node, out: int) -> None:
        if x not in self._postponed:
            self._program.prepare(self._buffers[x], out)
            return
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
        program.attention(self._buffers[q], node.layer, node.scale, self._take(node))
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


def _looks_at(product: Node, x: Node) -> bool:
    """Whether preparing the product's input reads x."""
    (source,) = product.inputs
    return source is x or (isinstance(source, Norm) and x in (source.inputs[0], *source.inputs[0].inputs))


def _label(node: Node) -> str:
    assert isinstance(node, Linear)
    rows, columns = node.matrix.shape
    return f"product {rows} x {columns}"
