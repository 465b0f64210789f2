"""LoRA adapters of single spans: each row has the update of its own sequence, whoever else is in the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from herd.backends.base import BackendOptions, Plan, Span
from herd.dtypes import F32, Q4_0
from herd.errors import UsageError
from herd.models.architecture import architecture_of
from herd.models.weights import Adapted, Dense, Kind, Matrix, Update
from tiny import dense_f32, random_leaves, tiny_llama, tiny_llama4

Logits = NDArray[np.float32]
TOKENS = {None: [3, 141, 59, 26, 53], "a": [58, 97, 93], "b": [31, 41, 59, 26, 5, 35, 8]}


def random(shape: tuple[int, ...], seed: int, scale: float) -> Dense:
    return dense_f32(np.random.default_rng(seed).standard_normal(shape) * scale)


def update(spec_shape: tuple[int, ...], seed: int, rank: int) -> Update:
    rows, columns = spec_shape
    return Update(random((rank, columns), seed, 0.05), random((rows, rank), seed + 1, 0.5), 0.7)


def adapters(cfg: Any) -> dict[str, dict[str, Update]]:
    """Two: of every matrix with a rank that fills no panel, and of some matrices with another."""
    matrices = [spec for spec in architecture_of(cfg).tensors(cfg) if spec.kind is Kind.MATRIX]
    return {
        "a": {spec.name: update(spec.shape, 10 * index, 5) for index, spec in enumerate(matrices)},
        "b": {spec.name: update(spec.shape, 1000 + 10 * index, 16) for index, spec in enumerate(matrices) if index % 3},
    }


def make(name: str, cfg: Any, leaves: dict[str, Matrix], **options: Any) -> Any:
    if name == "reference":
        from herd.backends.reference import ReferenceBackend

        backend: Any = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(**options))
    elif name == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        assert torch
        from herd.backends.torch import TorchBackend

        backend = TorchBackend(cfg, leaves.__getitem__, BackendOptions(**{**options, "activations": "float32"}))
    else:
        from herd.backends.cpu import CpuBackend

        backend = CpuBackend(cfg, leaves.__getitem__, BackendOptions(**options), lambda: None)
    backend.allocate(8)
    return backend


def run(backend: Any, *names: str | None, start: int = 0, count: int | None = None) -> list[Logits]:
    """One step with a span for each of `names`, which says its adapter; logits of all its tokens."""
    spans = []
    for name in names:
        tokens = TOKENS[name][start:count]
        page = list(TOKENS).index(name)
        spans.append(Span(start, tokens, [page], len(tokens), adapter=name))
    rows = backend.step(Plan(tuple(spans), want_logits=True)).logits_RV
    ends = np.cumsum([span.num_outputs for span in spans])[:-1]
    return [np.array(each) for each in np.split(rows, ends)]


CONFIGS = {"llama": tiny_llama(qkv_bias=True, ffn_bias=True), "llama4": tiny_llama4()}


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("name", ["reference", "cpu", "torch"])
def test_an_added_adapter_gives_what_a_model_loaded_with_it_gives(name: str, architecture: str) -> None:
    cfg = CONFIGS[architecture]
    leaves = random_leaves(cfg)
    backend = make(name, cfg, leaves, activations="float32")
    for adapter, updates in adapters(cfg).items():
        backend.add_adapter(adapter, updates)
        loaded = {**leaves, **{at: each.over(leaves[at], at) for at, each in updates.items()}}
        oracle = make("reference", cfg, loaded, activations="float32", dtype="float64")
        (found,), (expected,) = run(backend, adapter), _alone(oracle, adapter)
        plain = make("reference", cfg, loaded, activations="float32")
        (ours,) = _alone(plain, adapter)
        assert np.abs(found - expected).max() <= 2 * np.abs(ours - expected).max() + 1e-6
        (bare,) = _alone(backend, adapter)
        assert np.abs(found - bare).max() > 0.1, "the adapter matters"


def _alone(backend: Any, name: str) -> list[Logits]:
    """The tokens of an adapter in a span that names none."""
    tokens = TOKENS[name]
    return [np.array(backend.step(Plan((Span(0, tokens, [0], len(tokens)),), want_logits=True)).logits_RV)]


@pytest.mark.parametrize("dtype", [F32, Q4_0], ids=["f32", "q4_0"])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_bits_do_not_depend_on_the_adapters_of_others(threads: int, dtype: Any) -> None:
    cfg = tiny_llama()
    backend = make("cpu", cfg, random_leaves(cfg, dtype=dtype), threads=threads)
    (plain,) = run(backend, None)
    for adapter, updates in adapters(cfg).items():
        backend.add_adapter(adapter, updates)
    alone = {name: run(backend, name)[0] for name in TOKENS}
    assert alone[None].tobytes() == plain.tobytes(), "what has no adapter does not notice"
    together = dict(zip(TOKENS, run(backend, *TOKENS), strict=True))
    for name in TOKENS:
        assert together[name].tobytes() == alone[name].tobytes()
    run(backend, "b", None, count=2)
    rest = run(backend, "a", "b", start=2)[1]
    assert rest.tobytes() == alone["b"][2:].tobytes(), "cut differently, in other company"


def test_the_bits_are_those_of_a_model_that_was_loaded_with_the_adapter() -> None:
    cfg = tiny_llama()
    leaves = random_leaves(cfg, dtype=Q4_0)
    backend = make("cpu", cfg, leaves)
    updates = adapters(cfg)["a"]
    backend.add_adapter("a", updates)
    loaded = {
        at: Adapted(leaf, updates[at].down, updates[at].up, updates[at].scale) if at in updates else leaf for at, leaf in leaves.items()
    }
    (expected,) = _alone(make("cpu", cfg, loaded), "a")
    assert run(backend, "a")[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["reference", "cpu", "torch"])
def test_a_removed_adapter_is_gone_and_the_others_stay(name: str) -> None:
    cfg = tiny_llama()
    backend = make(name, cfg, random_leaves(cfg))
    for adapter, updates in adapters(cfg).items():
        backend.add_adapter(adapter, updates)
    (before,) = run(backend, "b")
    backend.remove_adapter("a")
    np.testing.assert_array_equal(run(backend, "b")[0], before)
    with pytest.raises(UsageError, match="no adapter 'a' here; there are b"):
        run(backend, "a")
    with pytest.raises(UsageError, match="no adapter 'a' here"):
        backend.remove_adapter("a")
    backend.remove_adapter("b")
    assert run(backend, None)[0].shape == (5, cfg.vocab_size)


@pytest.mark.parametrize("name", ["reference", "cpu", "torch"])
def test_an_adapter_of_another_model_is_refused_by_name(name: str) -> None:
    cfg = tiny_llama()
    backend = make(name, cfg, random_leaves(cfg))
    good = adapters(cfg)["a"]
    at, one = next(iter(good.items()))
    wrong = {at: Update(random((5, 64), 0, 1.0), one.up, 1.0)}
    with pytest.raises(UsageError, match=f"updates {at} by .* the model's is"):
        backend.add_adapter("a", wrong)
    with pytest.raises(UsageError, match="updates norm, which is no matrix"):
        backend.add_adapter("a", {"norm": one})
    backend.add_adapter("a", good)
    with pytest.raises(UsageError, match="There is an adapter named 'a' already"):
        backend.add_adapter("a", good)


def test_memory_counts_adapters() -> None:
    cfg = tiny_llama()
    backend = make("cpu", cfg, random_leaves(cfg))
    assert "adapters" not in backend.memory().other
    backend.add_adapter("a", adapters(cfg)["a"])
    assert backend.memory().other["adapters"] > 0
