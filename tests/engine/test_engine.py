"""The engine on a fake backend: the same tokens whatever the company, and pages that always come back."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from engine.engines import VOCAB, all_back, collect, drive, expected, make, random_request, random_steps
from fakes import FakeBackend
from herd.backends.base import PAGE_TOKENS, Placed, Plan
from herd.engine.request import Request
from herd.errors import CapacityError, FileProblem, HerdError, UsageError
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason


def test_one_request_gets_what_a_plain_loop_chooses() -> None:
    rng = random.Random(1)
    engine = make()
    for _ in range(30):
        request = random_request(rng)
        assert collect(engine.run(request)) == expected(request)
        all_back(engine)


@pytest.mark.parametrize("step_tokens", [8, 17, 64, 512])
def test_tokens_and_logprobs_do_not_depend_on_company_or_chunks(step_tokens: int) -> None:
    rng = random.Random(step_tokens)
    engine = make(num_pages=64, max_step_tokens=step_tokens)
    requests = [random_request(rng) for _ in range(20)]
    assert drive(engine, requests) == [expected(request) for request in requests]
    all_back(engine)


def test_preempted_requests_go_on_with_the_same_tokens() -> None:
    rng = random.Random(5)
    backend = FakeBackend(VOCAB)
    engine = make(backend, num_pages=5, context_length=300)
    requests = [
        Request(tokens=[rng.randrange(VOCAB) for _ in range(50)], sampling=SamplingParams(seed=i), max_tokens=120, stop_ids=())
        for i in range(6)
    ]
    assert drive(engine, requests) == [expected(request, 300) for request in requests]
    starts_over = sum(span.start == 0 or len(span.tokens) > 1 for plan in backend.plans for span in plan.spans) - len(requests)
    assert starts_over >= 3, "several were preempted and started over"
    all_back(engine)


def test_decoding_goes_before_prompts_and_the_budget_is_filled() -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend, max_step_tokens=32)
    engine.submit(Request(tokens=[1, 2, 3], max_tokens=20, stop_ids=()))
    engine.step()
    engine.submit(Request(tokens=[4] * 100, max_tokens=4, stop_ids=()))
    engine.submit(Request(tokens=[5] * 100, max_tokens=4, stop_ids=()))
    engine.step()
    assert [len(span.tokens) for span in backend.plans[-1].spans] == [1, 31]
    for _ in range(3):
        engine.step()
    assert [len(span.tokens) for span in backend.plans[-1].spans] == [1, 7, 24]


def test_the_next_turn_starts_after_everything_the_last_turn_computed() -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend)
    first = Request(tokens=[1] * 100, max_tokens=40, stop_ids=(), sampling=SamplingParams(temperature=0.0))
    answer = [token for token, _ in collect(engine.run(first))]
    second = Request(tokens=[*first.tokens, *answer, 3, 4, 5], max_tokens=3, stop_ids=(), sampling=SamplingParams(temperature=0.0))
    last = list(engine.run(second))
    assert last[0].sequence.cached_tokens == 139, "all but the token that was chosen last and never computed"
    assert [(p.token, p.logprob) for p in last] == expected(second)
    all_back(engine)


def test_a_prompt_that_is_cached_entirely_computes_its_last_token_again() -> None:
    engine = make()
    for length in (63, 64, 65, 128, 129):
        request = Request(tokens=list(range(40)) + [9] * (length - 40), max_tokens=1, sampling=SamplingParams(temperature=0.0))
        list(engine.run(request))
        again = list(engine.run(request))
        assert again[0].sequence.cached_tokens in range(length - PAGE_TOKENS, length)
        assert [(p.token, p.logprob) for p in again] == expected(request)
        all_back(engine)


def test_requests_with_other_salts_share_nothing() -> None:
    engine = make()
    list(engine.run(Request(tokens=[1] * 200, max_tokens=1, salt=b"a")))
    assert next(engine.run(Request(tokens=[1] * 200, max_tokens=1, salt=b"b"))).sequence.cached_tokens == 0
    assert next(engine.run(Request(tokens=[1] * 200, max_tokens=1, salt=b"a"))).sequence.cached_tokens == 199


@dataclass(frozen=True)
class Seen:
    """A picture, as far as the engine looks at it."""

    digest: bytes
    pixels: Any = None
    rows: int = 1
    columns: int = 1


def test_a_chat_that_gains_a_picture_reuses_what_came_before_it() -> None:
    engine = make()
    cat, dog = Seen(b"cat"), Seen(b"dog")

    def cached(length: int, *pictures: tuple[Seen, int, int]) -> int | None:
        placed = tuple(Placed(picture, range(first, end)) for picture, first, end in pictures)
        request = Request(tokens=[1] * length, max_tokens=1, pictures=placed)
        found = next(engine.run(request)).sequence.cached_tokens
        all_back(engine)
        return found

    assert cached(100) == 0
    assert cached(300, (cat, 150, 180)) == 100  # a page and the part of another before the picture
    assert cached(300, (cat, 150, 180)) == 299
    assert cached(300, (dog, 150, 180)) == 128  # the picture begins in the third page
    assert cached(300, (cat, 150, 181)) in range(128, 181)
    assert cached(300, (cat, 151, 181)) == 128
    assert cached(320, (cat, 150, 180), (dog, 310, 315)) in range(256, 310)
    assert cached(320) == 128, "picture tokens without a picture are other contents"


def test_two_that_run_at_once_share_the_full_pages_of_a_prompt() -> None:
    engine = make()
    list(engine.run(Request(tokens=[1] * 200, max_tokens=1)))
    for _ in range(2):
        engine.submit(Request(tokens=[1] * 200, max_tokens=50, stop_ids=()))
    engine.step()
    engine.check()
    assert engine.load.owned_pages == 3 + 2
    while engine.load.running:
        engine.step()
        engine.check()
    all_back(engine)


def test_ten_thousand_random_steps_keep_the_books_right() -> None:
    rng = random.Random(11)
    engine = make(num_pages=12, max_batch=5, max_step_tokens=40, max_step_outputs=6, context_length=400)
    random_steps(engine, rng, 10_000, [[rng.randrange(VOCAB) for _ in range(150)] for _ in range(4)])


def test_cancelling_at_random_phases_gives_back_every_page() -> None:
    rng = random.Random(3)
    engine = make(num_pages=24, max_batch=4, max_step_tokens=32)
    for _ in range(2000):
        request = Request(tokens=[rng.randrange(3)] * rng.randrange(1, 120), max_tokens=30, stop_ids=())
        stream = engine.run(request)
        company = engine.submit(Request(tokens=[8] * 70, max_tokens=2)) if rng.random() < 0.2 else None
        for _ in range(rng.randrange(4)):
            next(stream)
        stream.close()
        if company is not None:
            engine.cancel(company)
        all_back(engine)


def test_a_cancelled_neighbour_is_not_noticed() -> None:
    request = Request(tokens=[1, 2, 3], max_tokens=40, stop_ids=(), sampling=SamplingParams(seed=4))
    engine = make()
    stream, got = engine.run(request), []
    for index in range(40):
        other = engine.run(Request(tokens=[index] * 90, max_tokens=10))
        next(other)
        got += collect(iter([next(stream)]))
        other.close()
    assert got == expected(request)


def test_cancelling_during_a_step_takes_effect_at_its_end() -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend)
    sequence = engine.submit(Request(tokens=[1] * 70, max_tokens=10))
    owned = []

    def cancel(plan: Plan) -> None:
        worker = threading.Thread(target=lambda: (engine.cancel(sequence), owned.append(engine.load.owned_pages)))
        worker.start()
        worker.join()

    backend.before_step = cancel
    engine.step()
    assert owned == [2] and sequence.stop_reason is StopReason.CANCELLED
    all_back(engine)


def test_a_sequence_whose_logits_are_no_numbers_fails_alone() -> None:
    backend = FakeBackend(VOCAB, spoiled=lambda tokens: tokens[0] == 13)
    engine = make(backend)
    good = Request(tokens=[1, 2], max_tokens=10, stop_ids=(), sampling=SamplingParams(seed=1))
    sequences = [engine.submit(good), engine.submit(Request(tokens=[13, 2], max_tokens=10)), engine.submit(good)]
    answers = {sequence.number: [] for sequence in sequences}
    while engine.load.running or engine.load.waiting:
        for progress in engine.step():
            if progress.token is not None:
                answers[progress.sequence.number].append((progress.token, progress.logprob))
        engine.check()
    assert isinstance(sequences[1].error, FileProblem)
    assert answers == {0: expected(good), 1: [], 2: expected(good)}
    all_back(engine)


def test_what_a_failed_sequence_computed_is_not_found_again() -> None:
    backend = FakeBackend(VOCAB, spoiled=lambda tokens: len(tokens) == 150)
    engine = make(backend, max_step_tokens=64)
    (last,) = [p for p in engine.run(Request(tokens=[1] * 150, max_tokens=4)) if p.is_last]
    assert isinstance(last.error, FileProblem)
    assert engine.load.free_pages == engine.limits.num_pages


@pytest.mark.parametrize(("problem", "kind"), [(MemoryError(), CapacityError), (ZeroDivisionError("x"), HerdError)])
def test_an_unexpected_failure_ends_the_request_and_not_the_engine(problem: Exception, kind: type[HerdError]) -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend)

    def fail(plan: Plan) -> None:
        raise problem

    backend.before_step = fail
    (progress,) = engine.run(Request(tokens=[1, 2, 3], max_tokens=4))
    assert type(progress.error) is kind and progress.error.__cause__ is problem
    all_back(engine)
    backend.before_step = lambda plan: None
    assert len(collect(engine.run(Request(tokens=[1, 2, 3], max_tokens=4, stop_ids=())))) == 4


def test_an_interrupt_during_a_step_leaves_the_engine_usable() -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend)
    request = Request(tokens=[1] * 80, max_tokens=5, stop_ids=(), sampling=SamplingParams(seed=1))
    stream = engine.run(request)
    next(stream)

    def interrupt(plan: Plan) -> None:
        raise KeyboardInterrupt

    backend.before_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    backend.before_step = lambda plan: None
    all_back(engine)
    assert collect(engine.run(request)) == expected(request)


def test_a_seed_that_was_not_given_is_drawn_once_and_repeats_the_answer() -> None:
    engine = make()
    first = list(engine.run(Request(tokens=[1, 2], max_tokens=30, stop_ids=())))
    seed = first[0].sequence.seed
    second = engine.run(Request(tokens=[1, 2], max_tokens=30, stop_ids=(), sampling=SamplingParams(seed=seed)))
    assert [p.token for p in second] == [p.token for p in first]
    assert next(engine.run(Request(tokens=[1, 2]))).sequence.seed != seed


def test_several_threads_get_what_each_would_get_alone() -> None:
    rng = random.Random(9)
    engine = make(num_pages=10, max_batch=4)
    requests = [random_request(rng) for _ in range(24)]
    results: list[list[tuple[int, float]] | None] = [None] * len(requests)

    def work(first: int) -> None:
        for index in range(first, len(requests), 6):
            results[index] = collect(engine.run(requests[index]))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == [expected(request) for request in requests]
    all_back(engine)


def test_weights_are_replaced_only_when_nobody_runs_and_the_cache_is_forgotten() -> None:
    engine = make()
    stream = engine.run(Request(tokens=[1] * 100, max_tokens=5, stop_ids=()))
    next(stream)
    with pytest.raises(UsageError, match="1 requests"):
        engine.update({})
    stream.close()
    assert engine.load.cached_pages
    engine.update({})
    assert engine.load.free_pages == engine.limits.num_pages


def test_closing_cancels_and_refuses_what_comes_later() -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend)
    stream = engine.run(Request(tokens=[1], max_tokens=5, stop_ids=()))
    next(stream)
    engine.close()
    engine.close()
    assert backend.is_closed and next(stream).stop_reason is StopReason.CANCELLED
    with pytest.raises(UsageError, match="closed"):
        engine.submit(Request(tokens=[1]))


def test_requests_with_other_pictures_share_no_pages() -> None:
    engine = make()

    def cached(digest: bytes) -> int:
        placed = (Placed(FakePicture(digest), (0, 1)),)
        request = Request(tokens=[3] * 130, max_tokens=1, sampling=SamplingParams(temperature=0.0), pictures=placed)
        progress = list(engine.run(request))[-1]
        return progress.sequence.cached_tokens or 0

    assert [cached(b"a"), cached(b"b"), cached(b"a")] == [0, 0, 129]


@dataclass(frozen=True)
class FakePicture:
    """A picture that nobody looks at."""

    digest: bytes
    pixels: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros((1, 3, 2, 2), np.float32))
    rows: int = 1
    columns: int = 1
