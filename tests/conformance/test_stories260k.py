"""The smallest real model: herd tells the stories that `transformers` recorded, and agrees with it token by token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.exactness import answer_greedily, compare, logits_of, logprobs_of, open_backend, prompts_of, tokenizer_of

from conformance.architectures import transformers_logits, transformers_model
from herd.checkpoints import Checkpoint, open_checkpoint

TESTS = Path(__file__).resolve().parent.parent
MODEL = TESTS / "data" / "stories260K" / "stories260K.bin"
GOLDEN = TESTS / "golden" / "stories260k" / "story.json"
TIE = 1e-3
STORIES = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture
def model() -> Checkpoint:
    return open_checkpoint(MODEL)


@pytest.mark.parametrize("number", range(len(STORIES)))
def test_the_recorded_story_is_told_again(model: Checkpoint, backend_name: str, number: int) -> None:
    golden = STORIES[number]
    assert min(golden["margins"]) > TIE, "no token of the recording was a tie"
    answer = answer_greedily(open_backend(backend_name, model, "float32", 256), golden["prompt"], len(golden["tokens"]))
    assert answer.tokens == golden["tokens"]
    assert np.abs(np.array(answer.logprobs) - golden["logprobs"]).max() < 1e-4


def test_fed_the_recorded_story_all_log_probabilities_are_the_same(model: Checkpoint, backend_name: str) -> None:
    golden = STORIES[0]
    text = golden["prompt"] + golden["tokens"]
    found = logprobs_of(logits_of(open_backend(backend_name, model, "float32", 256), text[:-1]), text[1:])
    assert np.abs(found[len(golden["prompt"]) - 1 :] - golden["logprobs"]).max() < 1e-4


# In torch a step of this model is Python alone; the recorded stories suffice.
@pytest.mark.parametrize("backend_name", ["reference", "cpu"], indirect=True)
def test_twenty_stories_of_256_tokens_are_exact(model: Checkpoint, backend_name: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
    theirs = transformers_model(model.config, {spec.name: model.leaf(spec.name) for spec in model.specs})
    prompts = prompts_of(model, tokenizer_of(model), "stories", 20)
    assert len(prompts) == 20
    (exact,) = compare(
        open_backend(backend_name, model, "float32", 320), None, lambda tokens: transformers_logits(theirs, list(tokens)), prompts, 256
    )
    assert exact.is_exact(), exact
    assert exact.tokens == 20 * 256
