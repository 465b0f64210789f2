"""Texts with pictures through the engine: cut into chunks, preempted, found again in the cache, beside others - the same answers."""

from __future__ import annotations

import pytest

from conformance.seeing_models import STORIES, Story, leaves_of
from herd.backends.base import PAGE_TOKENS, BackendOptions
from herd.engine.engine import Engine
from herd.engine.request import Request
from herd.sampling.params import SamplingParams

pytestmark = pytest.mark.usefixtures("cpu")


def engine_for(story: Story, *, num_tokens: int, max_step_tokens: int, spare: int = 0) -> Engine:
    """With pages for a text of so many tokens, and for `spare` blocks more."""
    from herd.backends.cpu import CpuBackend

    options = BackendOptions(threads=2, activations="float32", max_step_tokens=max_step_tokens, max_step_outputs=8)
    backend = CpuBackend(story.cfg, leaves_of(story.cfg).__getitem__, options, lambda: None)
    limits = {"max_step_tokens": max_step_tokens, "max_step_outputs": 8, "max_batch": 4}
    num_pages = backend.groups.pages_for(num_tokens, max_step_tokens) + spare * backend.groups.count
    return Engine(backend, context_length=story.cfg.context_length, num_pages=num_pages, **limits)


def answers(engine: Engine, requests: list[Request]) -> tuple[list[list[tuple[int, float]]], int]:
    """Tokens and log-probabilities of each, all run together, and how often a sequence had to give way."""
    sequences = [engine.submit(request) for request in requests]
    found: dict[int, list[tuple[int, float]]] = {sequence.number: [] for sequence in sequences}
    gave_way = 0
    while any(each.stop_reason is None and each.error is None for each in sequences):
        before = {each.number for each in sequences if each.computed}
        for progress in engine.step():
            assert progress.error is None, progress.error
            if progress.token is not None:
                found[progress.sequence.number].append((progress.token, progress.logprob))
        gave_way += sum(1 for each in sequences if each.number in before and not each.computed and each.stop_reason is None)
        engine.check()
    return [found[each.number] for each in sequences], gave_way


@pytest.mark.parametrize("name", STORIES)
def test_company_chunks_preemption_and_the_cache_change_no_answer_about_pictures(name: str) -> None:
    story = STORIES[name]()
    sampling = SamplingParams(temperature=0.8, seed=5)
    asked = Request(tokens=story.tokens, sampling=sampling, max_tokens=70, pictures=story.placed, stop_ids=())
    blind = Request(tokens=[7] * 60, sampling=sampling, max_tokens=70, stop_ids=())
    alone = engine_for(story, num_tokens=32 * PAGE_TOKENS, max_step_tokens=256, spare=32)
    [expected], _ = answers(alone, [asked])
    [again], _ = answers(alone, [asked])
    assert again == expected, "from the cache"
    [text], _ = answers(alone, [blind])
    crowded = engine_for(story, num_tokens=len(story.tokens) + 70, max_step_tokens=24, spare=2)
    found, gave_way = answers(crowded, [blind, asked, asked])
    assert gave_way > 0 and found == [text, expected, expected]
