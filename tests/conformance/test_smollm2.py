"""The default model, whole: 20 prompts of 256 tokens and perplexity against `transformers` (see benchmarks/exactness.py).

Takes the model from HERD_TEST_MODEL (a .gguf file) or from the models folder, where `herd pull smollm2-135m-instruct` puts it.
HERD_TEST_PROMPTS, HERD_TEST_TOKENS and HERD_TEST_WINDOWS make it shorter, HERD_TEST_BACKEND takes another backend than the CPU's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from benchmarks.exactness import LIMITS, Agreement, Perplexities, measure, parse, transformers_oracle

from conformance.running import cpu_is_built
from herd.family.store import locate

# `network`: with it, tests see the models of the person who runs them.
pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """One run of the whole comparison; each test below looks at one part of it."""
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
    backend = os.environ.get("HERD_TEST_BACKEND", "cpu")
    if backend == "cpu" and not cpu_is_built():
        pytest.skip("the extension herd._core is not built (pip install -e .)")
    path = _model()
    options = ["--backend", backend]
    for option in ("prompts", "tokens", "windows"):
        if value := os.environ.get(f"HERD_TEST_{option.upper()}"):
            options += [f"--{option}", value]
    if (text := _text()) is not None:
        options += ["--text", str(text)]
    return measure(path, transformers_oracle(path), parse([str(path), *options]))


def test_greedy_answers_with_float32_activations_are_the_oracles(found: dict[str, Any]) -> None:
    assert found["float32"]["worst_margin"] < LIMITS.tie, found["float32"]


def test_log_probabilities_with_float32_activations_are_the_oracles(found: dict[str, Any]) -> None:
    assert found["float32"]["largest_logprob"] <= LIMITS.float32_logprob, found["float32"]


def test_int8_activations_stay_close_to_the_oracle(found: dict[str, Any]) -> None:
    assert Agreement(**found["int8"]).is_close(), found["int8"]


def test_int8_activations_keep_the_perplexity(found: dict[str, Any]) -> None:
    if "perplexity" not in found:
        pytest.skip("no wiki.test.raw: name the folder of the shared data with HERD_SHARED")
    read = Perplexities(**found["perplexity"])
    if not read.is_decided():
        pytest.skip(f"{read.windows} windows are too few to tell 0.3 %: leave HERD_TEST_WINDOWS out")
    assert read.is_close(), found


def _model() -> Path:
    if named := os.environ.get("HERD_TEST_MODEL"):
        return Path(named)
    installed = locate("smollm2-135m-instruct")
    if installed is None:
        pytest.skip("the model is not here: herd pull smollm2-135m-instruct, or name a .gguf file with HERD_TEST_MODEL")
    return installed.path


def _text() -> Path | None:
    shared = Path(os.environ.get("HERD_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    text = shared / "data" / "evals" / "wikitext2" / "wiki.test.raw"
    return text if text.is_file() else None
