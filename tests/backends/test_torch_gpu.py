"""What only a GPU can show: captured steps, numbers of its kernels, its memory. Run with `scripts/test -m gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch

from conformance.cases import CASES
from conformance.running import NUM_PAGES, error, logits_of, oracle, prompt, whole
from conformance.test_torch import median_error, rounding_reference
from herd.backends.base import BackendOptions, Plan, Span
from herd.backends.torch import TorchBackend
from herd.backends.torch.ranks.leader import DividedBackend
from herd.checkpoints.open import open_checkpoint
from herd.convert.trained import write_trained
from herd.dtypes import BF16, F16, DType
from herd.errors import CapacityError
from tiny import random_leaves, tiny_llama, tiny_llama4

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")]


def on_gpu(cfg, leaves, **options) -> TorchBackend:
    backend = TorchBackend(cfg, leaves.__getitem__, BackendOptions(**{"activations": "float32", "device": "cuda"} | options))
    backend.allocate(NUM_PAGES)
    return backend


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("name", CASES)
def test_in_16_bits_it_stays_within_the_budget(name: str, dtype: DType) -> None:
    cfg = CASES[name].cfg
    leaves, tokens = random_leaves(cfg, dtype=dtype), prompt(cfg, 80)
    exact = oracle(cfg, leaves, tokens)
    measure = median_error if getattr(cfg, "expert_layers", ()) else error
    allowed = 2 * measure(logits_of(rounding_reference(cfg, leaves, dtype), whole(tokens)), exact)
    assert 0 < measure(logits_of(on_gpu(cfg, leaves), whole(tokens)), exact) <= allowed


@pytest.mark.parametrize("name", CASES)
def test_captured_steps_say_what_the_whole_prompt_says(name: str) -> None:
    """In float64, one token at a time; beside it for a while a second sequence, and over a page's end, so that shapes change."""
    cfg = CASES[name].cfg
    leaves, tokens = random_leaves(cfg), prompt(cfg, 80)
    exact = oracle(cfg, leaves, tokens)
    backend = on_gpu(cfg, leaves, dtype="float64")
    assert abs(backend.logits(Plan((whole(tokens),))) - exact).max() < 1e-10
    for position, token in enumerate(tokens):
        spans = [Span(position, [token], [5, 3], 1)]
        if 10 <= position < 20:
            spans.append(Span(position - 10, [tokens[position - 10]], [7], 1))
        rows = backend.logits(Plan(tuple(spans)))
        assert abs(rows[0] - exact[position]).max() < 1e-10
        assert len(rows) == 1 or abs(rows[1] - exact[position - 10]).max() < 1e-10


def test_new_weights_and_new_pages_reach_captured_steps() -> None:
    cfg = tiny_llama()
    backend = on_gpu(cfg, random_leaves(cfg), dtype="float64")
    plan = Plan((Span(0, [3], [0], 1),))
    backend.logits(plan)
    other = random_leaves(cfg, seed=1)
    backend.update(other)
    backend.allocate(4)
    assert np.allclose(backend.logits(plan), oracle(cfg, other, [3]), atol=1e-10)


def test_a_cache_larger_than_the_gpu_is_a_capacity_error() -> None:
    cfg = tiny_llama()
    backend = on_gpu(cfg, random_leaves(cfg))
    with pytest.raises(CapacityError, match="refused them"):
        backend.allocate(torch.cuda.mem_get_info()[1] // backend.page_bytes())
    backend.allocate(4)
    assert logits_of(backend, Span(0, [1, 2], [0], 1)).shape == (1, cfg.vocab_size)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two GPUs")
@pytest.mark.parametrize("captured", ["0", "1"])
def test_a_model_on_two_gpus_says_what_it_says_on_one(captured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_TORCH_CAPTURE", captured)
    cfg = tiny_llama4()
    leaves, tokens = random_leaves(cfg), prompt(cfg, 80)
    write_trained(tmp_path / "m", cfg, leaves)
    exact = oracle(cfg, leaves, tokens)
    checkpoint = open_checkpoint(tmp_path / "m")
    options = BackendOptions(activations="float32", device="cuda", dtype="float64")
    backend = DividedBackend(checkpoint, options, 2)
    try:
        backend.allocate(NUM_PAGES)
        assert abs(logits_of(backend, whole(tokens)) - exact).max() < 1e-5
        for position, token in enumerate(tokens):
            assert abs(logits_of(backend, Span(position, [token], [5, 3], 1))[0] - exact[position]).max() < 1e-5
        assert backend.memory().other["weights on device 1"] == backend.memory().weights
    finally:
        backend.close()
        checkpoint.close()
