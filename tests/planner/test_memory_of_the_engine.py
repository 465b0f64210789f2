"""What a plan says of memory, beside what the processor's backend holds: the same sums on tiny models of each architecture."""

from __future__ import annotations

import pytest

from herd.backends.base import PAGE_TOKENS, BackendOptions
from herd.backends.cpu.backend import CpuBackend
from herd.dtypes import F16, F32, Q4_0, Q8_0, DType
from herd.models.architecture import Config
from herd.models.sizes import buffer_bytes, cache_bytes, weight_bytes
from herd.models.weights import TensorSpec
from tiny import random_leaves, tiny_llama, tiny_llama3_vision, tiny_llama4

PAGES = 5
WIDE = {"width": 1024, "ffn_width": 4096, "num_heads": 32, "num_kv_heads": 8, "vocab_size": 2048}


@pytest.mark.parametrize(
    ("config", "stored", "cache"),
    [
        pytest.param(tiny_llama(), F32, F32, id="llama in 32 bits"),
        pytest.param(tiny_llama(**WIDE), Q4_0, F16, id="a wider llama in 4 bits"),
        pytest.param(tiny_llama(tied_embeddings=True), Q8_0, F16, id="a tied llama in 8 bits"),
        pytest.param(tiny_llama4(), Q4_0, F16, id="llama 4 in 4 bits"),
        pytest.param(tiny_llama3_vision(), Q8_0, F16, id="llama 3.2 vision in 8 bits"),
    ],
)
def test_weights_and_cache_are_what_the_backend_holds(config: Config, stored: DType, cache: DType) -> None:
    """Matrices are filled up to 16 rows, which only small ones notice; every layer keeps every token."""

    def chosen(spec: TensorSpec) -> DType:
        return F32 if spec.kind.is_vector else stored

    backend = CpuBackend(config, random_leaves(config, dtype=chosen).__getitem__, BackendOptions(threads=1), lambda: None)
    try:
        backend.allocate(PAGES)
        held = backend.memory()
    finally:
        backend.close()
    assert held.cache == cache_bytes(config, PAGES * PAGE_TOKENS, PAGE_TOKENS, cache)
    assert weight_bytes(config, chosen) == pytest.approx(held.weights, rel=5e-3)


def test_buffers_of_a_model_of_some_width_are_as_predicted() -> None:
    """The sum is of what is alive at once. Of narrow models the scratch of each thread is a large part besides, and of plain weights
    the backend keeps the inputs of attention and of the feed-forward apart: a sixth more, of a hundredth of the whole."""
    config, options = tiny_llama(**WIDE), BackendOptions(threads=1)
    leaves = random_leaves(config, dtype=lambda spec: F32 if spec.kind.is_vector else Q4_0)
    backend = CpuBackend(config, leaves.__getitem__, options, lambda: None)
    try:
        held = backend.memory().buffers
    finally:
        backend.close()
    assert buffer_bytes(config, options.max_step_tokens, options.max_step_outputs) == pytest.approx(held, rel=0.05)
