"""What this machine reaches in a model's own work: one layer of random weights, run as a model runs it.

A peak is what the multipliers do alone. How much of it a product reaches depends on its number format (how codes are unpacked, how
often a scale comes), on the instruction set and on the processor, so it is measured: seconds of a step of a prompt, with its norms and
the rounding of activations. Attention is what the same step takes longer behind many tokens.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from herd.backends.base import PAGE_TOKENS, BackendOptions, Plan, Span
from herd.backends.cpu.backend import CpuBackend
from herd.dtypes import F32, DType
from herd.models.llama import LlamaConfig, tensors
from herd.models.rope import Rope
from herd.models.weights import Blocks, Dense, Leaf, TensorSpec
from herd.quant import quantize
from herd.records import dataclass

LAYER = LlamaConfig(
    width=2048, num_layers=1, num_heads=32, num_kv_heads=8, head_width=64, ffn_width=8192, vocab_size=256, norm_eps=1e-5,
    context_length=4096, rope=Rope(500000.0, 64), tied_embeddings=True,
)  # fmt: skip
"""A layer of Llama 3.2 1B: larger than a core's caches in every format, small enough to be measured in a second."""
STEP_TOKENS, BEHIND_TOKENS = 128, 1920
_ROUNDS, _MOST_SECONDS = 3, 1.5
_POOL_ROWS, _POOL_COLUMNS = 64, 256
_SPREAD = 0.02


@dataclass(frozen=True, slots=True)
class Reached:
    """Operations per second (a multiply and an add count as two) of products with weights, and of queries with keys and what they
    read; `attention` None: too little to be told from the noise."""

    products: float
    attention: float | None


def measure_layer(dtype: DType, kv_cache: str = "auto", threads: int | None = None, layer: LlamaConfig = LAYER) -> Reached:
    """What products of weights in this format reach, with such a cache. Takes about half a second, with plain formats a whole one."""
    specs = {spec.name: spec for spec in tensors(layer)}
    options = BackendOptions(threads=threads, kv_cache=kv_cache, max_step_tokens=STEP_TOKENS)
    backend = CpuBackend(layer, _leaf(dtype, specs), options, lambda: None)
    try:
        backend.allocate(-(-(BEHIND_TOKENS + STEP_TOKENS) // PAGE_TOKENS))
        page = memoryview(bytes(backend.page_bytes()))
        for number in range(backend.num_pages):
            backend.write_page(number, page)
        rounds = _rounds(backend)
    finally:
        backend.close()
    first = statistics.median(alone for alone, _ in rounds)
    longer = statistics.median(behind - alone for alone, behind in rounds)
    # Behind so many tokens every one sees them; behind none, half of the step.
    each = 4.0 * layer.num_heads * layer.head_width * STEP_TOKENS
    attention = each * BEHIND_TOKENS / longer if longer > 0 else None
    inside = each * STEP_TOKENS / 2 / attention if attention is not None else 0.0
    weights = sum(spec.count for spec in specs.values() if spec.name.startswith("layers.") and not spec.kind.is_vector)
    return Reached(2.0 * weights * STEP_TOKENS / max(first - inside, first / 2), attention)


def _rounds(backend: CpuBackend) -> list[tuple[float, float]]:
    """Seconds of a step that has nothing behind it and of one behind many tokens, one after the other; fewer rounds where others use
    the machine too and one takes long."""
    found: list[tuple[float, float]] = []
    _seconds(backend, 0)
    begun = time.perf_counter()
    while not found or (len(found) < _ROUNDS and time.perf_counter() - begun < _MOST_SECONDS):
        found.append((_seconds(backend, 0), _seconds(backend, BEHIND_TOKENS)))
    return found


def _seconds(backend: CpuBackend, start: int) -> float:
    tokens = [place * 7919 % backend.vocab_size for place in range(STEP_TOKENS)]
    plan = Plan((Span(start, tokens, list(range(backend.num_pages)), 1),))
    before = time.perf_counter()
    backend.step(plan)
    return time.perf_counter() - before


def _leaf(dtype: DType, specs: dict[str, TensorSpec]) -> Leaf:
    """Random weights: rows are put together of a few quantised stretches, for how long a product takes is the same."""
    chance = np.random.default_rng(1)
    pool = quantize(dtype, (chance.standard_normal((_POOL_ROWS, _POOL_COLUMNS)) * _SPREAD).astype(np.float32))

    def leaf(name: str) -> Dense | Blocks:
        shape = specs[name].shape
        if specs[name].kind.is_vector:
            return Dense(F32, shape, np.ones((1, *shape), np.float32).view(np.uint8))
        rows, columns = shape
        chosen = chance.integers(0, _POOL_ROWS, (rows, columns // _POOL_COLUMNS))
        return (Blocks if dtype.is_block else Dense)(dtype, shape, pool[chosen].reshape(rows, -1))

    return leaf
