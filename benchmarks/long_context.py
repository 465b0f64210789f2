"""How fast is a step with a long context behind it, against what reading weights and cache must take?

    python benchmarks/long_context.py [--context 4096 32768] [--kv-cache auto int8] [--threads 2] [--rounds 5] [--prompt 4096] [--profile]

The model has the shape of Llama 3.2 1B and random weights, q4_0 with a q6_k head, as llama.cpp stores it. The context is not
computed token by token: the first 64 tokens are, and what they left in the cache is written to every other page, so that all of it
is real memory with real values. A decoding step then reads every page once, as after any other prompt of that length.

The bound is (bytes of the weights + bytes of the cache up to the token) / bandwidth, the bandwidth measured between the rounds.
With --prompt N the tokens per second of a prompt of N tokens are set beside those of 512: measured over the 512 tokens in its middle,
which take as long as all do in the mean.

Prints one JSON line per figure, as the other benchmarks do.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from record import commit, figure, machine, say

from herd.backends.base import PAGE_TOKENS, BackendOptions, Plan, Span
from herd.backends.cpu import CpuBackend
from herd.backends.cpu.limits import measure_bandwidth
from herd.dtypes import F32, Q4_0, Q6_K, DType
from herd.models.llama import LlamaConfig, tensors
from herd.models.rope import Llama3, Rope
from herd.models.weights import Blocks, Dense, Kind, Matrix, TensorSpec

SHAPE = LlamaConfig(
    width=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_width=64,
    ffn_width=8192,
    vocab_size=128256,
    context_length=131072,
    norm_eps=1e-5,
    rope=Rope(500000.0, 64, Llama3(32.0, 1.0, 4.0, 8192)),
    tied_embeddings=True,
)
STEPS = 4  # of each round
STEP = 512  # tokens of a prompt at once


def random_leaf(spec: TensorSpec, seed: int = 0) -> Matrix:
    """Stored bytes at random, of values of about the right size: nothing needs to be quantised."""
    if spec.kind.is_vector:
        return Dense(F32, spec.shape, np.ones(spec.shape, np.float32).reshape(1, -1).view(np.uint8))
    dtype = Q6_K if spec.kind is Kind.EMBEDDING else Q4_0
    rows, columns = spec.shape
    data = np.random.default_rng(seed).integers(0, 256, (rows, columns // dtype.block, dtype.block_bytes), np.uint8)
    scale = np.float16(_scale(dtype) / columns**0.5)
    place = 208 if dtype is Q6_K else 0
    data[..., place : place + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return Blocks(dtype, spec.shape, data.reshape(rows, -1))


def _scale(dtype: DType) -> float:
    """So that values spread by about 1: codes of 4 bits by 4.6, of 6 bits by 18 times integer scales by 74."""
    return 1 / (18 * 74) if dtype is Q6_K else 1 / 4.6


def weight_bytes() -> int:
    return sum(random_leaf_bytes(spec) for spec in tensors(SHAPE))


def random_leaf_bytes(spec: TensorSpec) -> int:
    if spec.kind.is_vector:
        return spec.count * 4
    dtype = Q6_K if spec.kind is Kind.EMBEDDING else Q4_0
    return spec.count // dtype.block * dtype.block_bytes


def make_backend(kv_cache: str, threads: int) -> CpuBackend:
    leaves = {spec.name: random_leaf(spec, number) for number, spec in enumerate(tensors(SHAPE))}
    return CpuBackend(SHAPE, leaves.__getitem__, BackendOptions(threads=threads, kv_cache=kv_cache), lambda: None)


def fill(backend: CpuBackend, context: int) -> list[int]:
    """Room for `context` tokens and a few more, all of it written. Returns the pages of the sequence."""
    pages = -(-(context + PAGE_TOKENS) // PAGE_TOKENS)
    backend.allocate(pages)
    backend.step(Plan((Span(0, tuple(range(1, PAGE_TOKENS + 1)), range(pages)),)))
    for layer in range(SHAPE.num_layers):
        first = np.asarray(backend._cache.page(layer, 0))
        for page in range(1, pages):
            np.asarray(backend._cache.page(layer, page))[...] = first
    return list(range(pages))


def decode(backend: CpuBackend, context: int, pages: Sequence[int]) -> float:
    """Seconds of a step for the token after `context - 1` others."""
    started = time.perf_counter()
    for number in range(STEPS):
        backend.step(Plan((Span(context - 1, (1 + number,), pages, 1),)))
    return (time.perf_counter() - started) / STEPS


def prompt(backend: CpuBackend, start: int) -> float:
    """Tokens per second of 512 tokens of a prompt that were never seen before, behind `start` others that are in the cache."""
    tokens = tuple(random.randrange(SHAPE.vocab_size) for _ in range(STEP))
    started = time.perf_counter()
    backend.step(Plan((Span(start, tokens, list(range(-(-(start + STEP) // PAGE_TOKENS))), 1),)))
    return STEP / (time.perf_counter() - started)


def main() -> None:
    options = read_options()
    for kv_cache in options.kv_cache:
        say(f"making the model, cache {kv_cache}")
        backend = make_backend(kv_cache, options.threads)
        facts: dict[str, Any] = {
            "machine": machine(),
            "threads": options.threads,
            "commit": commit(),
            "model": "random weights in the shape of Llama 3.2 1B, q4_0 with a q6_k head",
            "model_mb": round(weight_bytes() / 1e6, 3),
            "versions": {"herd": backend.fingerprint},
        }
        for context in options.context:
            report_decoding(backend, kv_cache, context, options, facts)
        if options.prompt:
            report_prompt(backend, kv_cache, options, facts)
        backend.close()


def report_decoding(backend: CpuBackend, kv_cache: str, context: int, options: argparse.Namespace, facts: dict[str, Any]) -> None:
    say(f"filling {context} tokens of {kv_cache}")
    pages = fill(backend, context)
    decode(backend, context, pages)
    seconds, bandwidth = [], []
    for _ in range(options.rounds):
        bandwidth.append(measure_bandwidth(options.threads))
        backend.profile(options.profile)
        seconds.append(decode(backend, context, pages))
    if options.profile:
        say_profile(backend.profile(False))
    cache_bytes = -(-context // PAGE_TOKENS) * backend.page_bytes()
    bound_s = (weight_bytes() + cache_bytes) / statistics.median(bandwidth)
    bound = {
        "value": round(bound_s * 1e3, 2),
        "what": f"({weight_bytes() / 1e6:.0f} MB weights + {cache_bytes / 1e6:.0f} MB cache) / measured bandwidth",
    }
    milliseconds = [each * 1e3 for each in seconds]
    share = round(bound_s / statistics.median(seconds), 3)
    figure(
        f"decode, {context} tokens of context, {kv_cache} cache", milliseconds, "ms/token", facts, engine="herd", bound=bound, share=share
    )
    figure("memory bandwidth", [each / 1e9 for each in bandwidth], "GB/s", facts)


def report_prompt(backend: CpuBackend, kv_cache: str, options: argparse.Namespace, facts: dict[str, Any]) -> None:
    """The cost of attention grows evenly along a prompt, so its 512 tokens in the middle take the mean of all."""
    middle = (options.prompt - STEP) // 2
    fill(backend, middle + STEP)
    rates: dict[int, list[float]] = {0: [], middle: []}
    for _ in range(options.rounds):
        for start, found in rates.items():
            found.append(prompt(backend, start))
    first = statistics.median(rates[0])
    bound = {"value": round(first, 1), "what": "the rate of 512 tokens in this run"}
    figure(f"prompt, 512 tokens, {kv_cache} cache", rates[0], "tokens/s", facts, engine="herd")
    share = round(statistics.median(rates[middle]) / first, 3)
    figure(f"prompt, {options.prompt} tokens, {kv_cache} cache", rates[middle], "tokens/s", facts, engine="herd", bound=bound, share=share)


def say_profile(times: list[tuple[str, float]]) -> None:
    """Milliseconds of a step by kind of instruction."""
    sums: dict[str, float] = {}
    for label, seconds in times:
        sums[label] = sums.get(label, 0.0) + seconds * 1e3 / STEPS
    say(", ".join(f"{label} {value:.2f} ms" for label, value in sorted(sums.items(), key=lambda item: -item[1])))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--context", type=int, nargs="*", default=[4096, 32768])
    parser.add_argument("--kv-cache", nargs="+", default=["auto", "int8"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=0, help="also the rate of a prompt of so many tokens")
    parser.add_argument("--profile", action="store_true", help="say where the time of a step goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
