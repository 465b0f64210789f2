"""A draft model on a fake backend: right drafts from pages of its own, whatever the company, and never to blame."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.engines import VOCAB, all_back, collect, drive, expected, make, random_request
from engine.test_speculation import steps_of
from fakes import FakeBackend
from herd.backends.base import Plan
from herd.engine.draft_model import PATIENCE, ModelDrafter
from herd.engine.engine import Engine
from herd.engine.request import Request
from herd.engine.speculative import Speculation
from herd.errors import FileProblem
from herd.sampling.params import SamplingParams


def with_draft_model(drafting: FakeBackend, *, pages: int = 32, context: int = 512, chunk: int = 512, **options: Any) -> tuple[Engine, Any]:
    backend = FakeBackend(VOCAB)
    drafter = ModelDrafter(drafting, context, pages, lambda: None, chunk=chunk)
    speculation = Speculation(drafter, clock=steps_of(backend))
    return make(backend, speculation=speculation, **options), speculation


def test_a_model_that_is_the_same_is_always_right_also_where_tokens_are_drawn() -> None:
    engine, speculation = with_draft_model(FakeBackend(VOCAB))
    for seed, temperature in ((1, 0.0), (2, 1.0), (3, 1.4)):
        sampling = SamplingParams(temperature=temperature, seed=seed, repetition_penalty=1.2)
        request = Request(tokens=[seed, 2, 3], max_tokens=100, stop_ids=(), sampling=sampling)
        assert collect(engine.run(request)) == expected(request)
        all_back(engine)
    assert speculation.num_right == speculation.num_drafted > 200


@pytest.mark.parametrize(("pages", "chunk"), [(32, 512), (6, 64), (3, 32)])
def test_company_preemption_and_few_pages_change_nothing(pages: int, chunk: int) -> None:
    rng = random.Random(pages)
    drafting = FakeBackend(VOCAB, max_step_tokens=chunk)
    engine, speculation = with_draft_model(drafting, pages=pages, chunk=chunk, num_pages=12)
    requests = [random_request(rng) for _ in range(20)]
    assert drive(engine, requests) == [expected(request) for request in requests]
    assert speculation.num_right > 30 and speculation.num_right / speculation.num_drafted > 0.95
    all_back(engine)


def test_a_model_that_says_something_else_changes_no_answer_and_is_asked_less() -> None:
    class Other(FakeBackend):
        def _logits(self, span: Any, end: int) -> Any:
            return super()._logits(span, end)[::-1].copy()

    drafting = Other(VOCAB)
    engine, speculation = with_draft_model(drafting)
    engine_steps = engine.backend
    request = Request(tokens=[1, 2, 3], max_tokens=400, stop_ids=(), sampling=SamplingParams(temperature=0.0))
    assert collect(engine.run(request)) == expected(request)
    assert speculation.num_right < speculation.num_drafted / 4
    drafting.plans.clear()
    speculation._clock = lambda: float(sum(plan.num_tokens for plan in engine_steps.plans))  # each token now costs a step
    assert collect(engine.run(request)) == expected(request)
    assert len(drafting.plans) < 400 / PATIENCE[0] * 4 + 40


def test_the_next_turn_starts_where_the_draft_model_was() -> None:
    drafting = FakeBackend(VOCAB)
    engine, _ = with_draft_model(drafting)
    first = Request(tokens=[1] * 200, max_tokens=40, stop_ids=(), sampling=SamplingParams(temperature=0.0))
    answer = [token for token, _ in collect(engine.run(first))]
    drafting.plans.clear()
    second = Request(tokens=[*first.tokens, *answer, 3, 4, 5], max_tokens=30, stop_ids=(), sampling=SamplingParams(temperature=0.0))
    assert collect(engine.run(second)) == expected(second)
    assert drafting.plans and min(span.start for plan in drafting.plans for span in plan.spans) > 200


def test_a_draft_model_with_a_shorter_context_drafts_as_far_as_that_goes() -> None:
    engine, speculation = with_draft_model(FakeBackend(VOCAB), context=100)
    request = Request(tokens=[7] * 60, max_tokens=100, stop_ids=(), sampling=SamplingParams(seed=4))
    assert collect(engine.run(request)) == expected(request)
    assert 20 < speculation.num_drafted < 60


def test_a_draft_model_that_fails_is_not_asked_again_and_no_answer_suffers() -> None:
    drafting = FakeBackend(VOCAB, spoiled=lambda tokens: len(tokens) > 30)
    engine, speculation = with_draft_model(drafting)
    request = Request(tokens=[7] * 20, max_tokens=60, stop_ids=(), sampling=SamplingParams(seed=4))
    assert collect(engine.run(request)) == expected(request)
    assert isinstance(speculation._drafter.problem, FileProblem)
    drafting.plans.clear()
    assert collect(engine.run(request)) == expected(request) and not drafting.plans
    all_back(engine)


def test_closing_closes_the_draft_model_and_releases_its_files() -> None:
    closed: list[str] = []
    drafting = FakeBackend(VOCAB)
    backend = FakeBackend(VOCAB)
    engine = make(backend, speculation=Speculation(ModelDrafter(drafting, 512, 8, lambda: closed.append("files")), clock=steps_of(backend)))
    collect(engine.run(Request(tokens=[1], max_tokens=20)))
    engine.close()
    assert drafting.is_closed and closed == ["files"]


def test_the_draft_model_never_writes_a_page_of_two_sequences() -> None:
    drafting = FakeBackend(VOCAB)

    def check(plan: Plan) -> None:
        pages = [page for span in plan.spans for page in span.pages]
        assert len(pages) == len(set(pages))

    drafting.before_step = check
    engine, _ = with_draft_model(drafting, pages=5, num_pages=24)
    rng = random.Random(8)
    requests = [random_request(rng) for _ in range(16)]
    assert drive(engine, requests) == [expected(request) for request in requests]
