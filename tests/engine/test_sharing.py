"""A prompt that several ask for is computed once, also when they ask at the same time."""

from __future__ import annotations

from typing import Any

from engine.engines import VOCAB, all_back, make
from fakes import FakeBackend
from herd.backends.base import PAGE_TOKENS
from herd.engine.request import Request
from herd.sampling.params import SamplingParams

PROMPT = [number % VOCAB for number in range(6 * PAGE_TOKENS + 10)]


class Counting(FakeBackend):
    """Counts the tokens that are computed."""

    computed = 0

    def step(self, plan: Any) -> Any:
        self.computed += plan.num_tokens
        return super().step(plan)


def test_prompts_that_come_together_are_computed_once() -> None:
    backend = Counting(VOCAB, max_step_tokens=128)
    engine = make(backend, num_pages=64, max_step_tokens=128)
    request = Request(tokens=PROMPT, sampling=SamplingParams(temperature=0.0), max_tokens=4, stop_ids=())
    sequences = [engine.submit(request) for _ in range(3)]
    while any(each.stop_reason is None for each in sequences):
        engine.step()
        engine.check()
    assert len({tuple(each.answer) for each in sequences}) == 1
    # Each of the later ones computes at most what a step of the first had not finished, and its own answer.
    assert backend.computed <= len(PROMPT) + 2 * (128 + PAGE_TOKENS) + 3 * 4
    assert [each.cached_tokens for each in sequences][1:] > [0, 0]
    all_back(engine)
