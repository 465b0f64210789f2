"""Every operation of a language model on native code against its definition: models of a single operation, run in one step and token
by token on one thread and three, which must be the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from herd.backends.base import BackendOptions, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.backends.reference.arrays import Arrays
from herd.dtypes import BF16, F16, F32, Q4_K, Q8_0, DType
from herd.models.architecture import CacheShape
from herd.models.ops import Chunks, Experts, Sliding, Step, Window
from herd.models.weights import Dense, Kind, Matrix, TensorSpec, stored
from herd.quant import quantize
from tiny import dense_f32

_core = pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
CpuBackend = pytest.importorskip("herd.backends.cpu").CpuBackend
packed = pytest.importorskip("herd.backends.cpu.packed")

Floats = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def matrix(dtype: DType, *shape: int, seed: int = 0) -> Matrix:
    """A random matrix, or a stack of them."""
    values = normal(*shape, seed=seed) * np.float32(1.5 / shape[-1] ** 0.5)
    return stored(dtype, shape, quantize(dtype, values.reshape(-1, shape[-1])))


class OneOperation:
    """A module of a model whose logits are what `operation` makes of its embedding."""

    def __init__(self, leaves: dict[str, tuple[Kind, Matrix]], operation: Callable[[Any, Any, Callable[[str], Any]], Any]) -> None:
        self.leaves = leaves
        self._operation = operation
        self.width = leaves["embed"][1].shape[1]
        self.vocab_size, self.num_layers, self.context_length = self.width, 1, 512

    def tensors(self, cfg: Any) -> Any:
        return (TensorSpec(name, tuple(leaf.shape), kind) for name, (kind, leaf) in self.leaves.items())

    def weights(self, cfg: Any, leaf: Any) -> Any:
        return leaf

    def caches(self, cfg: Any) -> tuple[CacheShape, ...]:
        return (CacheShape(4, 2, 16),)

    def forward(self, w: Any, cfg: Any, step: Step) -> Any:
        x_TD = step.ops.embed(step.tokens_T, w("embed"))
        return step.ops.select(self._operation(step, x_TD, w), step.outputs_R)


ROWS = 100


def run_both(
    monkeypatch: pytest.MonkeyPatch, model: OneOperation, activations: str = "float32", isa: str | None = None
) -> tuple[Floats, NDArray[np.float64]]:
    """Logits of some 200 tokens, in one step and token by token (which must be the same bits), and those of the float64 reference."""
    if isa:
        monkeypatch.setenv("HERD_ISA", isa)
    for module in ("herd.backends.cpu.backend", "herd.backends.reference.backend"):
        monkeypatch.setattr(f"{module}.architecture_of", lambda cfg: cfg)
        monkeypatch.setattr(f"{module}.num_embeddings", lambda cfg: ROWS)
        monkeypatch.setattr(f"{module}.seeing", lambda cfg: None)
        monkeypatch.setattr(f"{module}.classifying", lambda cfg: None)
    monkeypatch.setattr("herd.backends.base.classifying", lambda cfg: None)
    tokens = [int(token) for token in np.random.default_rng(0).integers(0, ROWS, 300)]
    leaf = {name: each for name, (_, each) in model.leaves.items()}.__getitem__
    exact = ReferenceBackend(cast(Any, model), leaf, BackendOptions(dtype="float64", activations=activations))
    exact.allocate(8)
    right = exact.logits(Plan((Span(0, tokens, [3, 1, 2, 0, 4], len(tokens)),)))
    found = []
    for threads in (1, 3):
        options = BackendOptions(activations=activations, threads=threads, max_step_tokens=512, max_step_outputs=512)
        ours = CpuBackend(cast(Any, model), leaf, options, lambda: None)
        ours.allocate(12)
        for chunk, pages in ((300, [3, 1, 2, 0, 4]), (1, [5, 7, 6, 8, 9])):
            plans = [
                Plan((Span(start, tokens[start : start + chunk], pages, min(chunk, 300 - start)),), want_logits=True)
                for start in range(0, 300, chunk)
            ]
            found.append(np.concatenate([ours.step(plan).logits_RV for plan in plans]))
    assert all(np.array_equal(each, found[0]) for each in found)
    return found[0], right.astype(np.float64)


def table(width: int) -> dict[str, tuple[Kind, Matrix]]:
    return {"embed": (Kind.EMBEDDING, dense_f32(normal(ROWS, width)))}


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize(
    "window",
    [None, Chunks(1), Chunks(7), Chunks(64), Chunks(100), Sliding(1), Sliding(5), Sliding(64), Sliding(130), Sliding(1000)],
    ids=str,
)
def test_windows_let_through_what_the_definition_says(monkeypatch: pytest.MonkeyPatch, window: Window | None, isa: str) -> None:
    def attend(step: Any, x: Any, w: Any) -> Any:
        ops = step.ops
        q, k, v = (ops.heads(ops.linear(x, w(name)), heads) for name, heads in (("q", 4), ("k", 2), ("v", 2)))
        return ops.merge_heads(ops.attention(q, k, v, step.cache[0], 0.5, window=window))

    leaves = table(64) | {name: (Kind.MATRIX, matrix(F32, rows, 64, seed=rows)) for name, rows in (("q", 64), ("k", 32))}
    leaves["v"] = (Kind.MATRIX, matrix(F32, 32, 64, seed=9))
    found, exact = run_both(monkeypatch, OneOperation(leaves, attend), isa=isa)
    assert np.abs(found - exact).max() < 1e-5


def test_a_value_that_is_no_number_does_not_reach_tokens_that_it_is_outside_the_window_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(step: Any, x: Any, w: Any) -> Any:
        ops = step.ops
        q, k, v = (ops.heads(ops.linear(x, w(name)), heads) for name, heads in (("q", 4), ("k", 2), ("v", 2)))
        return ops.merge_heads(ops.attention(q, k, v, step.cache[0], 0.5, window=Sliding(5)))

    leaves = table(64) | {name: (Kind.MATRIX, matrix(F32, rows, 64, seed=rows)) for name, rows in (("q", 64), ("k", 32))}
    leaves["v"] = (Kind.MATRIX, matrix(F32, 32, 64, seed=9))
    model = OneOperation(leaves, attend)
    run_both(monkeypatch, model)
    rows = normal(ROWS, 64)
    rows[50] = np.nan
    leaf = {name: each for name, (_, each) in leaves.items()} | {"embed": dense_f32(rows)}
    results = []
    for source in (leaf, {name: each for name, (_, each) in leaves.items()}):
        backend = CpuBackend(cast(Any, model), source.__getitem__, BackendOptions(threads=1, activations="float32"), lambda: None)
        backend.allocate(2)
        plan = Plan((Span(0, [1, 2, 50, 3, 4, 5, 6, 7, 8, 9], [0], 3),), want_logits=True)
        results.append(backend.step(plan).logits_RV)
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("num_heads", [1, 4, 16])
@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_norms_of_heads_and_centred_norms(monkeypatch: pytest.MonkeyPatch, num_heads: int, has_weight: bool, centred: bool) -> None:
    def norm(step: Any, x: Any, w: Any) -> Any:
        ops, weight = step.ops, w("weight") if has_weight else None
        return ops.merge_heads(ops.rms_norm(ops.heads(x, num_heads), weight, 1e-3, centred=centred))

    leaves = table(48) | {"weight": (Kind.NORM, cast(Matrix, dense_f32(normal(48 // num_heads, seed=2))))}
    found, exact = run_both(monkeypatch, OneOperation(leaves, norm))
    assert np.abs(found - exact).max() < 3e-6


def test_queries_are_tempered_by_their_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    def temper(step: Any, x: Any, w: Any) -> Any:
        return step.ops.merge_heads(step.ops.temper(step.ops.heads(x, 4), step.positions_T, 16.0, 0.3))

    found, exact = run_both(monkeypatch, OneOperation(table(48), temper))
    assert np.abs(found - exact).max() < 3e-6


def test_gates_and_the_soft_cap_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    def gates(step: Any, x: Any, w: Any) -> Any:
        ops = step.ops
        y = ops.sigmoid_gate(ops.linear(x, w("a")), ops.linear(x, w("b")))
        return ops.soft_cap(ops.gated_add(x, y, w("gate")), 3.0, 4.0)

    leaves = table(48) | {"gate": (Kind.GATE, cast(Matrix, dense_f32(np.array([-0.7]))))}
    leaves |= {name: (Kind.MATRIX, matrix(F32, 48, 48, seed=seed)) for name, seed in (("a", 5), ("b", 6))}
    found, exact = run_both(monkeypatch, OneOperation(leaves, gates))
    assert np.abs(found - exact).max() < 5e-6


FORMATS = [(F32, F32, F32, "float32"), (BF16, F16, F32, "float32"), (Q8_0, Q4_K, F32, "int8"), (Q8_0, F32, Q8_0, "int8")]


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize(("gate", "up", "down", "activations"), FORMATS, ids=lambda each: getattr(each, "name", each))
@pytest.mark.parametrize(("num_experts", "num_chosen"), [(1, 1), (4, 1), (7, 3), (16, 16), (130, 2)])
def test_experts_are_those_of_highest_score(
    monkeypatch: pytest.MonkeyPatch, isa: str, num_experts: int, num_chosen: int, gate: DType, up: DType, down: DType, activations: str
) -> None:
    ffn = 256 if down.is_block else 40

    def experts(step: Any, x: Any, w: Any) -> Any:
        ops = step.ops
        return ops.experts(x, ops.linear(x, w("router")), Experts(w("gate"), w("up"), w("down")), num_chosen)

    stacks = {"gate": matrix(gate, num_experts, ffn, 256, seed=1), "up": matrix(up, num_experts, ffn, 256, seed=2)}
    leaves = table(256) | {name: (Kind.EXPERTS, leaf) for name, leaf in stacks.items()}
    leaves["down"] = (Kind.EXPERTS, matrix(down, num_experts, 256, ffn, seed=3))
    leaves["router"] = (Kind.ROUTER, matrix(F32, num_experts, 256, seed=4))
    found, exact = run_both(monkeypatch, OneOperation(leaves, experts), activations, isa)
    is_rounded = activations == "int8" or (gate is BF16 and _core.Machine(1, isa).multiplies_bf16)
    assert np.abs(found - exact).max() < (0.02 * np.abs(exact).max() if is_rounded else 2e-5)


def test_of_equal_scores_the_lower_expert_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def experts(step: Any, x: Any, w: Any) -> Any:
        ops = step.ops
        return ops.experts(x, ops.linear(x, w("router")), Experts(w("gate"), w("up"), w("down")), 2)

    router = np.repeat(normal(3, 32), 2, axis=0)[[0, 2, 1, 4, 3, 5]]
    leaves = table(32) | {"router": (Kind.ROUTER, cast(Matrix, dense_f32(router)))}
    leaves |= {name: (Kind.EXPERTS, matrix(F32, 6, 32, 32, seed=seed)) for name, seed in (("gate", 1), ("up", 2), ("down", 3))}
    found, exact = run_both(monkeypatch, OneOperation(leaves, experts))
    assert np.abs(found - exact).max() < 1e-5


@pytest.mark.parametrize("rows", [1, 15, 16, 17])
def test_stacks_of_experts_of_any_number_of_rows_are_packed_one_after_another(rows: int) -> None:
    machine = _core.Machine(1, "portable")
    leaf = matrix(F32, 3, rows, 5)
    assert isinstance(leaf, Dense)
    made = packed.Packer(machine, "float32", None).pack(TensorSpec("leaf", leaf.shape, Kind.EXPERTS), leaf)
    values, out = Arrays(np.dtype(np.float32)).get(leaf), np.empty(5, np.float32)
    for expert, native in enumerate(made.each()):
        assert (native.rows, native.columns) == (rows, 5)
        for row in range(rows):
            native.row(machine, row, out)
            assert np.array_equal(out, values[expert, row])
    with pytest.raises(ValueError, match="a part begins at a multiple of 16"):
        made.whole.native.part(3, 1)
