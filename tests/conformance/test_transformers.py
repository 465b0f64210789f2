"""The oracle is right: the same weights in `transformers` give the same logits."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")

from conformance.cases import CASES
from conformance.running import error, logits_of, make_backend, oracle, prompt, whole
from tiny import random_leaves


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_equals_transformers_in_float64(name: str) -> None:
    case = CASES[name]
    leaves, tokens = random_leaves(case.cfg), prompt(case.cfg, 150)
    theirs = case.logits(case.cfg, leaves, tokens, "float64")
    ours = oracle(case.cfg, leaves, tokens)
    assert ours.std() > 0.5, "logits that hardly differ prove nothing"
    assert abs(ours - theirs).max() < 1e-11


@pytest.mark.parametrize("name", CASES)
def test_the_float32_reference_is_as_close_as_transformers_in_float32(name: str) -> None:
    case = CASES[name]
    leaves, tokens = random_leaves(case.cfg), prompt(case.cfg, 150)
    exact = oracle(case.cfg, leaves, tokens)
    theirs = error(case.logits(case.cfg, leaves, tokens, "float32"), exact)
    ours = error(logits_of(make_backend("reference", case.cfg, leaves, activations="float32"), whole(tokens)), exact)
    assert 0 < ours <= 2 * theirs
