"""What an engine refuses, and where its limits lie exactly."""

from __future__ import annotations

import pytest

from engine.engines import VOCAB, all_back, collect, make
from fakes import FakeBackend
from herd.engine.engine import Engine
from herd.engine.request import Request
from herd.errors import CapacityError, UsageError
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason


def test_the_context_is_an_exact_limit() -> None:
    engine = make(context_length=100)
    assert len(collect(engine.run(Request(tokens=[1] * 99, stop_ids=())))) == 1
    (only,) = engine.run(Request(tokens=[1] * 100))
    assert only.token is None and only.stop_reason is StopReason.LENGTH
    with pytest.raises(UsageError, match="101 tokens; the context is 100"):
        engine.run(Request(tokens=[1] * 101))
    cut = list(engine.run(Request(tokens=[1] * 90, max_tokens=50, stop_ids=())))
    assert len(cut) == 10 and cut[-1].stop_reason is StopReason.LENGTH
    all_back(engine)


def test_what_can_never_fit_into_the_pages_is_refused_with_numbers() -> None:
    engine = make(context_length=1000, num_pages=2)
    with pytest.raises(CapacityError, match="200 tokens; the cache holds 128"):
        engine.run(Request(tokens=[1] * 200))
    with pytest.raises(CapacityError, match=r"100 tokens and the answer may have 50; the cache holds 128"):
        engine.submit(Request(tokens=[1] * 100, max_tokens=50))
    with pytest.raises(CapacityError, match="200 tokens"):
        engine.score([1] * 200)
    assert len(collect(engine.run(Request(tokens=[1] * 100, stop_ids=())))) == 28


@pytest.mark.parametrize("tokens", [[], [-1], [VOCAB], [2**80], [1.5], ["1"], [True], [None]])
def test_wrong_prompts_are_refused_before_anything_happens(tokens: list[object]) -> None:
    engine = make()
    with pytest.raises(UsageError):
        engine.run(Request(tokens=tokens))  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        engine.score(tokens)  # type: ignore[arg-type]
    assert engine.load.waiting == 0


@pytest.mark.parametrize("max_tokens", [-1, 1.5, True, "3"])
def test_wrong_max_tokens_are_refused(max_tokens: object) -> None:
    with pytest.raises(UsageError, match="max_tokens"):
        make().run(Request(tokens=[1], max_tokens=max_tokens))  # type: ignore[arg-type]


def test_a_bias_or_a_stop_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="logit_bias contains token 50"):
        make().run(Request(tokens=[1], sampling=SamplingParams(logit_bias={50: 1.0})))
    with pytest.raises(UsageError, match="stop_ids contains token 99"):
        make().run(Request(tokens=[1], stop_ids=[99]))


def test_max_tokens_zero_finishes_without_a_step() -> None:
    backend = FakeBackend(VOCAB)
    (only,) = make(backend).run(Request(tokens=[1], max_tokens=0))
    assert only.stop_reason is StopReason.LENGTH and not backend.plans


def test_the_default_number_of_pages_is_one_context() -> None:
    backend = FakeBackend(VOCAB)
    assert Engine(backend, context_length=1000).limits.num_pages == 16
    assert backend.num_pages == 16


@pytest.mark.parametrize(
    "options", [{"context_length": 0}, {"num_pages": 0}, {"max_batch": 0}, {"max_batch": 65}, {"max_batch": 8, "max_step_tokens": 4}]
)
def test_impossible_settings_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        make(**options)
