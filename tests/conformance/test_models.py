"""Every architecture, on every backend, in every storage format, against the float64 oracle.

The budget is one rule: the error of a backend is at most twice that of the plain implementation computing in the same
types, both measured against float64 on the same weights.

  weights                      plain implementation                                                     exact
  F32, F16, blocks as float32  numpy in float32 (for the reference itself: `transformers` in float32)   float64
  BF16                         the same; where the processor has a dot product of bf16, with            float64
                               activations rounded to it
  blocks with int8             numpy in float32, the same int8 activations, a float16 cache             float64 with the same two

With int8 activations a difference in the last bit may round an activation to the neighbouring integer, and one such
step is worth more than all other errors together; so there the plain error is the largest of three equally plain ways to
run the same prompt (whole, in chunks of 64, in chunks of 7).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from conformance.architectures import ARCHITECTURES, transformers_logits, transformers_model
from conformance.running import error, in_chunks, logits_of, make_backend, oracle, plain_of, prompt, whole
from herd import dtypes
from tiny import random_leaves

LENGTH = 80
STORAGES = [dtype.name for dtype in dtypes.ALL]
BLOCK_STORAGES = [dtype.name for dtype in dtypes.BLOCK]
# Int8 activations concern `linear` alone: every format on two architectures, and two formats on every one.
WITH_INT8 = [
    (architecture, storage)
    for architecture in ARCHITECTURES
    for storage in BLOCK_STORAGES
    if architecture in ("llama-3.2 (tied)", "groups of three") or storage in ("q4_1", "q4_k")
]


def leaves_of(architecture: str, storage: str):
    return random_leaves(ARCHITECTURES[architecture], dtype=dtypes.BY_NAME[storage])


def tokens_of(architecture: str) -> list[int]:
    return prompt(ARCHITECTURES[architecture], LENGTH)


@lru_cache(maxsize=4)
def exact_logits(architecture: str, storage: str, activations: str) -> NDArray[np.float64]:
    return oracle(ARCHITECTURES[architecture], leaves_of(architecture, storage), tokens_of(architecture), activations)


def plain_error(architecture: str, storage: str, activations: str) -> float:
    cfg, leaves, tokens = ARCHITECTURES[architecture], leaves_of(architecture, storage), tokens_of(architecture)
    plain = plain_of("cpu", cfg, leaves, activations=activations)
    exact = exact_logits(architecture, storage, activations)
    at_once = error(logits_of(plain, whole(tokens)), exact)
    if activations == "float32":
        return at_once
    return max(at_once, *(error(in_chunks(plain, tokens, chunk), exact) for chunk in (64, 7)))


def backend_error(name: str, architecture: str, storage: str, activations: str) -> float:
    cfg, leaves = ARCHITECTURES[architecture], leaves_of(architecture, storage)
    backend = make_backend(name, cfg, leaves, activations=activations)
    found = error(logits_of(backend, whole(tokens_of(architecture))), exact_logits(architecture, storage, activations))
    backend.close()
    return found


@pytest.mark.parametrize("storage", STORAGES)
def test_the_reference_reads_every_storage_as_closely_as_transformers(storage: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
    architecture = "groups of three"
    theirs = transformers_model(ARCHITECTURES[architecture], leaves_of(architecture, storage))
    plain = error(transformers_logits(theirs, tokens_of(architecture)), exact_logits(architecture, storage, "float32"))
    assert 0 < backend_error("reference", architecture, storage, "float32") <= 2 * plain


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cpu_backend_stays_within_the_budget(cpu: str, architecture: str, storage: str) -> None:
    found = backend_error(cpu, architecture, storage, "float32")
    assert 0 < found <= 2 * plain_error(architecture, storage, "float32")


@pytest.mark.parametrize(("architecture", "storage"), WITH_INT8)
def test_the_cpu_backend_stays_within_the_budget_with_int8_activations(cpu: str, architecture: str, storage: str) -> None:
    found = backend_error(cpu, architecture, storage, "int8")
    assert found <= 2 * plain_error(architecture, storage, "int8")


@pytest.mark.parametrize("backend_name", ["reference", "cpu"], indirect=True)
@pytest.mark.parametrize("storage", BLOCK_STORAGES)
def test_int8_activations_cost_little_and_not_nothing(backend_name: str, storage: str) -> None:
    """Against logits that spread by 2: an eighth of that at most, and never the float32 path under another name."""
    architecture = "llama-3 (grouped-query)"
    cfg, leaves, tokens = ARCHITECTURES[architecture], leaves_of(architecture, storage), tokens_of(architecture)
    exact = exact_logits(architecture, storage, "float32")
    with_int8 = logits_of(make_backend(backend_name, cfg, leaves, activations="int8"), whole(tokens))
    assert 1000 * plain_error(architecture, storage, "float32") < error(with_int8, exact) < exact.std() / 8


def test_formats_may_be_mixed_in_one_model(backend_name: str) -> None:
    """As real files do: a different format for every kind and layer, norms in F32."""
    cfg = ARCHITECTURES["llama-3.2 (tied)"]
    mixture = [dtypes.Q4_K, dtypes.Q6_K, dtypes.F16, dtypes.Q4_1, dtypes.F32, dtypes.IQ4_XS]
    leaves = random_leaves(cfg, dtype=lambda spec: mixture[sum(spec.name.encode()) % len(mixture)])
    assert len({leaf.dtype for leaf in leaves.values()}) >= 5
    tokens = prompt(cfg, LENGTH)
    exact = oracle(cfg, leaves, tokens)
    plain = plain_of(backend_name, cfg, leaves, activations="float32")
    found = error(logits_of(make_backend(backend_name, cfg, leaves, activations="float32"), whole(tokens)), exact)
    assert found <= 2 * error(logits_of(plain, whole(tokens)), exact)
