"""Speculation as a user asks for it: the same answers from text, from a smaller model, with stop texts; wrong choices are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import herd
from cli.running import STORIES, invoke
from conformance.running import cpu_is_built
from herd.errors import FileProblem, UsageError
from tiny import random_leaves, tiny_llama
from tiny_files import write_gguf, write_huggingface

REPEATED = "Lily had a red ball. Tom had a blue ball. " * 6
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here"))]


def answers(backend: str, draft: Any) -> list[tuple[Any, ...]]:
    with herd.load(STORIES, backend=backend, draft=draft) as model:
        made = []
        for asked in (
            {"temperature": 0.0, "max_tokens": 120},
            {"temperature": 0.9, "seed": 5, "max_tokens": 90, "repetition_penalty": 1.1},
            {"temperature": 0.0, "max_tokens": 120, "stop": ["ball", "mom"]},
        ):
            out = model.generate(REPEATED, **asked)
            made.append((out.token_ids, out.text, out.logprobs, out.stop_reason, out.stop_text, out.usage.completion_tokens))
        return made


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_are_the_same_whatever_drafts(backend: str) -> None:
    plain = answers(backend, "off")
    assert plain[2][4] is not None, "a stop text was found"
    for draft in ("lookup", STORIES):
        for found, expected in zip(answers(backend, draft), plain, strict=True):
            assert [*found[:2], *found[3:]] == [*expected[:2], *expected[3:]]
            # Only the cpu's bits do not depend on how many rows a step has.
            assert found[2] == (expected[2] if backend == "cpu" else pytest.approx(expected[2], abs=1e-4))


def test_a_draft_model_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    cfg = tiny_llama()
    other = write_gguf(tmp_path / "other.gguf", cfg, random_leaves(cfg))
    with pytest.raises(UsageError, match=f"it has {cfg.vocab_size} tokens, not 512"):
        herd.load(STORIES, backend="reference", draft=other)


def test_models_without_tokenizers_draft_by_id(tmp_path: Path) -> None:
    cfg = tiny_llama()
    folder = write_huggingface(tmp_path / "m", cfg, random_leaves(cfg))
    got = []
    for draft in ("off", folder):
        with herd.load(folder, backend="reference", draft=draft) as model:
            got.append(model.generate([1, 2, 3], max_tokens=30, temperature=0.0).token_ids)
    assert got[0] == got[1]


def test_a_draft_that_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="draft is 3"):
        herd.load(STORIES, backend="reference", draft=3)  # type: ignore[arg-type]
    with pytest.raises((UsageError, FileProblem)):
        herd.load(STORIES, backend="reference", draft="./nothing-here.gguf")


def test_the_terminal_takes_a_draft() -> None:
    got = []
    for draft in ("off", "lookup"):
        done = invoke("run", STORIES, REPEATED, "-n", "40", "-t", "0", "--json", "--backend", "reference", "--draft", draft)
        got.append(json.loads(done.output)["token_ids"])
    assert got[0] == got[1]
