"""Scores, classifications and looks inside: what is asked of an engine besides answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from engine.engines import VOCAB, all_back, collect, expected, make
from fakes import FakeBackend, fake_logits
from herd.backends.base import Plan, Watch
from herd.engine.engine import Engine
from herd.engine.request import Request
from herd.errors import CapacityError, FileProblem, UsageError
from herd.sampling.params import SamplingParams


def test_scores_are_the_rows_of_all_positions_in_bounded_pieces() -> None:
    engine = make(max_step_outputs=20)
    tokens = [index % VOCAB for index in range(130)]
    engine.submit(Request(tokens=[3] * 40, max_tokens=30, stop_ids=()))
    pieces = list(engine.score(tokens))
    assert max(map(len, pieces)) <= 20
    np.testing.assert_array_equal(np.concatenate(pieces), [fake_logits(tokens[: end + 1], VOCAB) for end in range(130)])
    engine.check()


def test_scores_are_not_computed_ahead_of_their_reader_and_give_way() -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend, num_pages=4, context_length=256)
    tokens = [index % VOCAB for index in range(200)]
    scores = engine.score(tokens)
    rows = [next(scores)]
    request = Request(tokens=[9] * 190, max_tokens=20, stop_ids=(), sampling=SamplingParams(seed=1))
    assert collect(engine.run(request)) == expected(request, 256)
    before = len(backend.plans)
    assert engine.step() == [] and len(backend.plans) == before + 0, "what was computed is not read yet"
    rows += list(scores)
    np.testing.assert_array_equal(np.concatenate(rows), [fake_logits(tokens[: end + 1], VOCAB) for end in range(200)])
    all_back(engine)


def test_an_error_while_scoring_is_raised() -> None:
    engine = make(FakeBackend(VOCAB, spoiled=lambda tokens: len(tokens) == 90))
    with pytest.raises(FileProblem):
        list(engine.score([1] * 100))
    all_back(engine)


def test_a_text_under_examination_runs_alone_and_gives_its_pages_back() -> None:
    engine = make(num_pages=4)
    seen: list[range] = []

    def watch(positions: range) -> Watch:
        seen.append(positions)
        assert engine.backend.num_pages == 4
        return Watch()

    tokens = [5] * 150
    steps = engine.examine(tokens, watch)
    first, result = next(steps)
    assert result.logits_RV is not None and np.array_equal(result.logits_RV[-1], fake_logits(tokens[: first.stop], VOCAB))
    steps.close()
    assert len(list(engine.examine(tokens, watch))) == 3 and seen[-1] == range(128, 150)
    assert (engine.load.free_pages, engine.load.owned_pages) == (4, 0)
    engine.check()


def test_an_examination_that_finds_no_pages_is_refused() -> None:
    engine = make(num_pages=4)
    engine.submit(Request(tokens=[1] * 150, sampling=SamplingParams(temperature=0.0)))
    engine.step()
    with pytest.raises(CapacityError, match="3 pages of cache are needed and 1 are not in use"):
        list(engine.examine([5] * 150, lambda positions: Watch()))


@pytest.mark.parametrize("ask", [Engine.step, Engine.close, lambda engine: list(engine.score([1, 2])), lambda engine: engine.classify([1])])
def test_a_step_that_asks_its_own_engine_is_refused_instead_of_waiting_for_itself(ask: Callable[[Engine], object]) -> None:
    backend = FakeBackend(VOCAB)
    engine = make(backend)

    def examined() -> int:
        return len(list(engine.examine([5] * 10, lambda positions: Watch())))

    backend.before_step = lambda plan: ask(engine)
    with pytest.raises(UsageError, match="in the middle of a step"):
        examined()
    backend.before_step = lambda plan: None
    assert examined() == 1 and collect(engine.run(Request(tokens=[1], max_tokens=1)))
    engine.check()


def test_a_classifier_is_asked_by_one_thread_at_a_time_and_not_after_closing() -> None:
    class Classifier(FakeBackend):
        at_work = 0

        def classify(self, tokens: list[int]) -> np.ndarray[Any, Any]:
            self.at_work += 1
            assert self.at_work == 1
            time.sleep(0.01)
            self.at_work -= 1
            return np.asarray(tokens, np.float32)

    engine = make(Classifier(VOCAB))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda token: engine.classify([token]), range(8)))
    assert [float(row[0]) for row in found] == list(range(8))
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.classify([1])


def test_names_of_values_are_found_out_once_and_when_nobody_runs_the_model() -> None:
    class Named(FakeBackend):
        asked = 0

        def value_names(self) -> tuple[str, ...]:
            assert not is_stepping.is_set()
            self.asked += 1
            return ("embed",)

    is_stepping, backend = threading.Event(), Named(VOCAB)
    engine = make(backend)

    def slowly(plan: Plan) -> None:
        is_stepping.set()
        time.sleep(0.05)
        is_stepping.clear()

    backend.before_step = slowly
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(lambda: collect(engine.run(Request(tokens=[1], max_tokens=3))))
        is_stepping.wait(5)
        assert [engine.value_names, engine.value_names] == [("embed",)] * 2 and backend.asked == 1
        assert answer.result(5)
