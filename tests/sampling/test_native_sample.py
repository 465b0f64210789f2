"""The native chooser against the definition in numpy: equal choices, and log-probabilities to the last few bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from herd.errors import FileProblem
from herd.sampling.chain import Draw, choose
from herd.sampling.params import SamplingParams
from herd.sampling.random import philox

core: Any = pytest.importorskip("herd._core", reason="the native module is not built")
ISAS = core.available_isas()


def chooser(isa: str, vocab_size: int, threads: int = 1) -> Any:
    return core.Chooser(core.Machine(threads, isa), vocab_size)


def random_params(rng: np.random.Generator, vocab_size: int) -> SamplingParams:
    ids = rng.choice(vocab_size, min(8, vocab_size), replace=False)
    return SamplingParams(
        temperature=float(rng.choice([0.0, 0.3, 0.8, 1.0, 1.7, 20.0])),
        top_k=int(rng.choice([0, 0, 1, 5, 40, 300, vocab_size, 10 * vocab_size])),
        top_p=float(rng.choice([1.0, 1.0, 0.0, 0.5, 0.9, 0.999])),
        min_p=float(rng.choice([0.0, 0.0, 0.01, 0.1, 1.0])),
        repetition_penalty=float(rng.choice([1.0, 1.0, 1.3, 0.7])),
        presence_penalty=float(rng.choice([0.0, 0.0, 0.5])),
        frequency_penalty=float(rng.choice([0.0, 0.0, 0.2])),
        logit_bias={int(i): float(rng.normal() * 5) for i in ids} if rng.random() < 0.3 else {},
        logprobs=int(rng.choice([0, 0, 3, 20])),
    )


def random_row(rng: np.random.Generator, vocab_size: int) -> np.ndarray:
    kind = rng.integers(5)
    if kind == 0:
        return np.round(rng.normal(size=vocab_size) * 2).astype(np.float32)  # many equal ones
    if kind == 1:
        return np.zeros(vocab_size, np.float32)
    logits = rng.normal(size=vocab_size) * rng.choice([0.1, 2.0, 5.0])
    if kind == 2:
        logits[rng.random(vocab_size) < 0.2] = -np.inf
    if kind == 3:
        logits[rng.integers(vocab_size)] += 20
    return logits.astype(np.float32)


def random_draw(rng: np.random.Generator, vocab_size: int) -> Draw:
    seen = rng.choice(vocab_size, rng.integers(0, min(50, vocab_size) + 1), replace=False).astype(np.int32)
    return Draw(
        params=random_params(rng, vocab_size),
        seed=int(rng.integers(2**63)),
        position=int(rng.integers(2**20)),
        choice_index=int(rng.integers(4)),
        seen_ids=seen,
        answer_counts=rng.integers(0, 4, len(seen)).astype(np.int32),
    )


def masked(draw: Draw, allowed: np.ndarray) -> Draw:
    """The draw among the tokens that `allowed`, bool [V], has."""
    bits = np.packbits(np.pad(allowed, (0, -len(allowed) % 32)), bitorder="little")
    return dataclasses.replace(draw, allowed=bits.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("vocab_size", "rows"), [(1, 20), (7, 400), (257, 1000), (4099, 300), (32000, 40)])
def test_native_choices_equal_the_definition(isa: str, vocab_size: int, rows: int) -> None:
    rng = np.random.default_rng(vocab_size)
    native = chooser(isa, vocab_size)
    for _ in range(rows):
        logits, draw = random_row(rng, vocab_size), random_draw(rng, vocab_size)
        if rng.random() < 0.4:
            allowed = rng.random(vocab_size) < rng.choice([0.5, 0.97, 2 / vocab_size])
            allowed[rng.integers(vocab_size)] = True
            draw = masked(draw, allowed)
            logits[~np.isfinite(logits)] = -9.0
        if not np.isfinite(logits).any():
            continue
        (got,), expected = native.choose(logits[None], [0], [draw]), choose(logits, draw)
        assert got.token == expected.token, draw
        assert got.logprob == pytest.approx(expected.logprob, abs=1e-12)
        assert [token for token, _ in got.top] == [token for token, _ in expected.top]
        np.testing.assert_allclose([p for _, p in got.top], [p for _, p in expected.top], atol=1e-12)


@pytest.mark.parametrize("isa", ISAS)
def test_native_weights_are_drawn_as_often_as_they_should(isa: str) -> None:
    """Flat rows, so that many candidates are in play and buckets are used."""
    logits = np.linspace(0, 1, 5000, dtype=np.float32)
    draws = [Draw(params=SamplingParams(top_p=0.9), seed=3, position=position) for position in range(300)]
    got = chooser(isa, 5000).choose(logits[None], [0] * 300, draws)
    assert [choice.token for choice in got] == [choose(logits, draw).token for draw in draws]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 5, 300, 511, 512])
def test_a_row_without_a_distribution_has_no_choice(isa: str, bad: float, where: int) -> None:
    logits = np.zeros((2, 513), np.float32)
    logits[0, where] = bad
    draws = [Draw(params=SamplingParams(), seed=1, position=1)] * 2
    first, second = chooser(isa, 513).choose(logits, [0, 1], draws)
    assert first is None and second is not None
    with pytest.raises(FileProblem):
        choose(logits[0], draws[0])
    assert chooser(isa, 513).choose(np.full((1, 513), -np.inf, np.float32), [0], draws[:1]) == [None]


def test_several_threads_choose_the_same_for_strided_rows() -> None:
    rng = np.random.default_rng(2)
    wide = rng.normal(size=(40, 1024)).astype(np.float32)
    logits = wide[:, :1000]
    draws = [random_draw(rng, 1000) for _ in range(40)]
    got = [chooser(ISAS[-1], 1000, threads).choose(logits, list(range(40)), draws) for threads in (1, 2, 3)]
    assert got[0] == got[1] == got[2]
    assert [choice.token for choice in got[0]] == [choose(row, draw).token for row, draw in zip(logits, draws, strict=True)]


def test_wrong_arguments_are_refused_by_name() -> None:
    native, logits = chooser("portable", 10), np.zeros((1, 10), np.float32)
    good = Draw(params=SamplingParams(), seed=1, position=1)
    outside = dataclasses.replace(good, params=SamplingParams(logit_bias={10: 1.0}))
    with pytest.raises(ValueError, match="logit_bias contains token 10"):
        native.choose(logits, [0], [outside])
    with pytest.raises(ValueError, match="rows contains 1"):
        native.choose(logits, [1], [good])
    with pytest.raises(ValueError, match="expected contiguous rows of 10"):
        native.choose(np.zeros((1, 9), np.float32), [0], [good])
    with pytest.raises(ValueError, match="equally many"):
        native.choose(logits, [0], [])
    seen = dataclasses.replace(
        good, params=SamplingParams(presence_penalty=1.0), seen_ids=np.array([11], np.int32), answer_counts=np.array([1], np.int32)
    )
    with pytest.raises(ValueError, match="seen_ids contains token 11"):
        native.choose(logits, [0], [seen])


def test_native_philox_is_the_same() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        words = [int(word) for word in rng.integers(2**32, size=6)]
        assert core.philox(tuple(words[:4]), tuple(words[4:])) == philox(tuple(words[:4]), tuple(words[4:]))  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", ISAS)
def test_only_allowed_tokens_are_chosen_and_keep_the_probability_that_the_model_gives(isa: str) -> None:
    logits = np.random.default_rng(1).normal(size=100).astype(np.float32)
    native = chooser(isa, 100)
    for params in (SamplingParams(temperature=0.0), SamplingParams(temperature=1.0), SamplingParams(top_k=3, top_p=0.5, logprobs=2)):
        free = Draw(params=params, seed=3, position=5)
        for token in (0, 31, 32, 99):
            (got,) = native.choose(logits[None], [0], [masked(free, np.arange(100) == token)])
            assert got.token == token
            assert got.logprob == pytest.approx(float(logits[token] - np.logaddexp.reduce(logits.astype(np.float64))), abs=1e-12)


@pytest.mark.parametrize("isa", ISAS)
def test_where_nothing_is_allowed_nothing_is_chosen(isa: str) -> None:
    logits = np.zeros(70, np.float32)
    draw = masked(Draw(params=SamplingParams(), seed=1, position=9), np.zeros(70, bool))
    assert chooser(isa, 70).choose(logits[None], [0], [draw]) == [None]
    with pytest.raises(FileProblem, match="position 9"):
        choose(logits, draw)


@pytest.mark.parametrize("words", [0, 2, 4])
def test_a_mask_of_another_size_is_refused(words: int) -> None:
    draw = dataclasses.replace(Draw(params=SamplingParams(), seed=1, position=1), allowed=np.ones(words, np.uint32))
    with pytest.raises(ValueError, match="takes 3"):
        chooser(ISAS[0], 70).choose(np.zeros((1, 70), np.float32), [0], [draw])
