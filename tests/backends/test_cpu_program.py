"""Traced programs: what is fused gives the bits of what it is made of, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from herd.backends.base import BackendOptions, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.dtypes import F16, F32, Q4_K, Q6_K, Q8_0, DType
from herd.models.llama import LlamaConfig
from herd.models.weights import Adapted, Matrix, TensorSpec
from tiny import dense_f32, random_leaves, tiny_llama

_core = pytest.importorskip("herd._core", reason="the extension herd._core is not built (pip install -e .)", exc_type=ImportError)
CpuBackend = pytest.importorskip("herd.backends.cpu").CpuBackend

ARCHITECTURES = {
    "grouped": tiny_llama(),
    "biases": tiny_llama(qkv_bias=True, out_bias=True, ffn_bias=True, tied_embeddings=True),
    "one kv head, odd head width": tiny_llama(num_heads=32, num_kv_heads=1, head_width=24),
    "heads narrower than a panel": tiny_llama(num_heads=32, num_kv_heads=4, head_width=8),
}


def mixed(spec: TensorSpec) -> DType:
    """A different format for queries, keys, values and the rest."""
    return {"q": Q4_K, "k": Q8_0, "v": Q6_K, "gate": F16, "up": Q4_K}.get(spec.name.rsplit(".", 1)[-1], F32)


def adapted(leaves: dict[str, Matrix]) -> dict[str, Matrix]:
    """Every weight of attention with an update of rank 3."""
    random = np.random.default_rng(3)

    def adapt(leaf: Matrix) -> Matrix:
        assert not isinstance(leaf, Adapted)
        down, up = (dense_f32(random.standard_normal(shape) / 16) for shape in ((3, leaf.shape[1]), (leaf.shape[0], 3)))
        return Adapted(leaf, down, up, 0.5)

    return {name: adapt(leaf) if ".attention." in name else leaf for name, leaf in leaves.items()}


def run(cfg: LlamaConfig, leaves: dict[str, Matrix], *, fuse: bool = True, **options: Any) -> NDArray[np.float32]:
    """Logits of a prompt of 70 tokens, then of a step with two sequences, then of one token."""
    backend = CpuBackend(cfg, leaves.__getitem__, BackendOptions(**options), lambda: None, fuse=fuse)
    backend.allocate(8)
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, cfg.vocab_size, 73)]
    plans = [
        Plan((Span(0, tokens[:70], [5, 2], 20),), want_logits=True),
        Plan((Span(0, tokens[5:7], [1], 1), Span(70, tokens[70:72], [5, 2], 2)), want_logits=True),
        Plan((Span(72, tokens[72:], [5, 2], 1),), want_logits=True),
    ]
    rows = [backend.step(plan).logits_RV for plan in plans]
    backend.close()
    return np.concatenate([row for row in rows if row is not None])


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("dtype", [F32, Q8_0, mixed], ids=["f32", "q8_0", "mixed"])
def test_fused_and_composed_programs_give_the_same_bits(architecture: str, dtype: Any) -> None:
    cfg = ARCHITECTURES[architecture]
    leaves = random_leaves(cfg, dtype=dtype)
    assert np.array_equal(run(cfg, leaves, threads=2), run(cfg, leaves, threads=2, fuse=False))


def test_adapted_weights_give_the_same_bits_fused_and_composed() -> None:
    cfg = ARCHITECTURES["grouped"]
    leaves = adapted(random_leaves(cfg))
    assert np.array_equal(run(cfg, leaves, threads=2), run(cfg, leaves, threads=1, fuse=False))


@pytest.mark.parametrize("isa", _core.available_isas())
def test_bits_do_not_depend_on_threads(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_ISA", isa)
    cfg = ARCHITECTURES["grouped"]
    leaves = random_leaves(cfg, dtype=Q8_0)
    alone = run(cfg, leaves, threads=1)
    for threads in (2, 3, 7):
        assert np.array_equal(run(cfg, leaves, threads=threads), alone)


@pytest.mark.parametrize("isa", _core.available_isas())
def test_every_instruction_set_is_near_the_oracle(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_ISA", isa)
    cfg = ARCHITECTURES["biases"]
    leaves = random_leaves(cfg, dtype=Q8_0)
    tokens = list(range(70))
    plan = Plan((Span(0, tokens, [1, 0], 64),), want_logits=True)
    oracle = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(dtype="float64", activations="float32"))
    plain = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(dtype="float32", activations="float32"))
    ours = CpuBackend(cfg, leaves.__getitem__, BackendOptions(threads=2, activations="float32"), lambda: None)
    for backend in (oracle, plain, ours):
        backend.allocate(2)
    exact = oracle.logits(plan)
    found = ours.step(plan).logits_RV
    assert found is not None
    assert np.sqrt(np.mean((found - exact) ** 2)) <= 2 * np.sqrt(np.mean((plain.logits(plan) - exact) ** 2))


def test_a_layer_is_five_products_and_attention() -> None:
    """Each layer: prepare, (q, k, v), attention, prepare, out, prepare, (gate, up), prepare, down; around them embed, rotary,
    prepare, head. Small steps leave out what prepares."""
    cfg = tiny_llama(num_layers=4)
    backend = CpuBackend(cfg, random_leaves(cfg).__getitem__, BackendOptions(threads=1), lambda: None)
    labels = [label for label, _ in backend.profile(True)]
    assert len(labels) == 4 * 9 + 4
    assert sum("prepare" not in label for label in labels) == 4 * 5 + 3


def test_all_layers_share_their_buffers() -> None:
    few, many = tiny_llama(num_layers=1), tiny_llama(num_layers=6)
    options = BackendOptions(threads=1)
    sizes = [CpuBackend(cfg, random_leaves(cfg).__getitem__, options, lambda: None).memory().buffers for cfg in (few, many)]
    assert sizes[0] == sizes[1]


def test_a_profile_names_every_instruction_and_its_seconds() -> None:
    cfg = ARCHITECTURES["grouped"]
    backend = CpuBackend(cfg, random_leaves(cfg).__getitem__, BackendOptions(threads=1), lambda: None)
    backend.allocate(2)
    backend.profile(True)
    for _ in range(3):
        backend.step(Plan((Span(0, list(range(60)), [0], 1),)))
    seconds = dict(backend.profile(False))
    assert {"embed", "attention", "q, k, v", "gate, up", "product 320 x 256"} <= set(seconds)
    assert all(value > 0 for value in seconds.values())
