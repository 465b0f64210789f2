"""The oracle is right: the same weights in `transformers` give the same logits."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

from conformance.architectures import ARCHITECTURES, transformers_logits, transformers_model
from conformance.running import error, logits_of, make_backend, oracle, prompt, whole
from tiny import random_leaves


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_oracle_equals_transformers_in_float64(architecture: str) -> None:
    cfg = ARCHITECTURES[architecture]
    leaves, tokens = random_leaves(cfg), prompt(cfg, 150)
    theirs = transformers_logits(transformers_model(cfg, leaves, "float64"), tokens)
    ours = oracle(cfg, leaves, tokens)
    assert ours.std() > 0.5, "logits that hardly differ prove nothing"
    assert abs(ours - theirs).max() < 1e-11


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_float32_reference_is_as_close_as_transformers_in_float32(architecture: str) -> None:
    cfg = ARCHITECTURES[architecture]
    leaves, tokens = random_leaves(cfg), prompt(cfg, 150)
    exact = oracle(cfg, leaves, tokens)
    theirs = error(transformers_logits(transformers_model(cfg, leaves), tokens), exact)
    ours = error(logits_of(make_backend("reference", cfg, leaves, activations="float32"), whole(tokens)), exact)
    assert 0 < ours <= 2 * theirs
