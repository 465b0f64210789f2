"""Adapters in the engine: who may be named when, and whose pages are whose."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from engine.engines import matrices
from fakes import FakeBackend, fake_adapter, fake_logits
from herd.backends.base import PAGE_TOKENS, Plan
from herd.engine.adapters import digest_of
from herd.engine.engine import Engine
from herd.engine.request import Request
from herd.errors import UsageError
from herd.models.weights import Update
from herd.sampling.params import SamplingParams

VOCAB = 50
GREEDY = SamplingParams(temperature=0.0)


def make(**options: Any) -> tuple[Engine, FakeBackend]:
    backend = FakeBackend(VOCAB)
    engine = Engine(backend, context_length=512, num_pages=options.pop("num_pages", 32), **options)
    for name in ("a", "b"):
        engine.add_adapter(name, matrices(name))
    return engine, backend


def expected(tokens: list[int], adapter: str | None, count: int) -> list[int]:
    """What a loop without an engine chooses, of a model that is adapted throughout."""
    offset = 0 if adapter is None else fake_adapter(adapter)
    seen = [token + offset for token in tokens]
    for _ in range(count):
        seen.append(int(fake_logits(seen, VOCAB).argmax()) + offset)
    return [token - offset for token in seen[len(tokens) :]]


def answer(engine: Engine, adapter: str | None, tokens: list[int], count: int = 8) -> list[int]:
    request = Request(tokens=tokens, sampling=GREEDY, max_tokens=count, adapter=adapter)
    return [progress.token for progress in engine.run(request) if progress.token is not None]


def test_sequences_with_different_adapters_share_steps_and_nothing_else() -> None:
    engine, backend = make()
    prompt = [number % VOCAB for number in range(PAGE_TOKENS + 20)]
    asked = [None, "a", "b", "a", None]
    sequences = [engine.submit(Request(tokens=prompt, sampling=GREEDY, max_tokens=8, adapter=name)) for name in asked]
    while engine.load.running or engine.load.waiting:
        engine.step()
        engine.check()
    for name, sequence in zip(asked, sequences, strict=True):
        assert sequence.answer == expected(prompt, name, 8)
    assert max(len({span.adapter for span in plan.spans}) for plan in backend.plans) == 3


def test_pages_are_found_again_under_the_same_adapter_only() -> None:
    engine, _ = make()
    prompt = [number % VOCAB for number in range(2 * PAGE_TOKENS)]
    cached = []
    for name in ("a", "b", None, "a"):
        sequence = engine.submit(Request(tokens=prompt, sampling=GREEDY, max_tokens=4, adapter=name))
        while sequence.stop_reason is None:
            engine.step()
        assert sequence.answer == expected(prompt, name, 4)
        cached.append(sequence.cached_tokens)
    assert cached[:3] == [0, 0, 0] and cached[3] == PAGE_TOKENS


@pytest.mark.parametrize(("contents", "found"), [("a", PAGE_TOKENS), ("c", 0)])
def test_an_adapter_finds_what_was_computed_under_its_matrices_and_nothing_under_its_name(contents: str, found: int) -> None:
    engine, _ = make()
    prompt = [number % VOCAB for number in range(2 * PAGE_TOKENS)]
    answer(engine, "a", prompt)
    engine.remove_adapter("a")
    engine.add_adapter("a", matrices(contents))
    sequence = engine.submit(Request(tokens=prompt, sampling=GREEDY, max_tokens=1, adapter="a"))
    engine.step()
    assert sequence.cached_tokens == found


def test_adapters_are_told_apart_by_all_that_their_numbers_follow_from() -> None:
    one = matrices("a")
    (name, update), *_ = one.items()
    others = [
        {},
        matrices("b"),
        {"layers.1.attention.q": update},
        {name: replace(update, scale=1.0)},
        {name: replace(update, down=replace(update.down, shape=(2, 2)))},
        {name: Update(update.up, update.down, 2.0)},
    ]
    assert len({digest_of(each) for each in (one, *others)}) == 7 and digest_of(one) == digest_of(matrices("a"))


def test_a_removed_adapter_is_refused_at_once_and_leaves_with_its_last_sequence() -> None:
    engine, backend = make()
    sequence = engine.submit(Request(tokens=[1, 2, 3], sampling=GREEDY, max_tokens=5, adapter="a"))
    engine.step()
    engine.remove_adapter("a")
    assert engine.adapters == ("b",) and set(backend.adapters) == {"a", "b"}
    with pytest.raises(UsageError, match="no adapter 'a' here; there are b"):
        engine.submit(Request(tokens=[1], adapter="a"))
    with pytest.raises(UsageError, match="still answers somebody"):
        engine.add_adapter("a", matrices("a"))
    while sequence.stop_reason is None:
        engine.step()
    assert sequence.answer == expected([1, 2, 3], "a", 5)
    assert set(backend.adapters) == {"b"}
    engine.remove_adapter("b")
    assert not backend.adapters
    with pytest.raises(UsageError, match="there are none"):
        engine.remove_adapter("b")


def test_an_adapter_is_added_between_two_steps() -> None:
    engine, backend = make()
    in_step, go = threading.Event(), threading.Event()

    def hold(plan: Plan) -> None:
        in_step.set()
        go.wait(10)

    backend.before_step = hold
    engine.submit(Request(tokens=[1, 2], sampling=GREEDY, max_tokens=1))
    stepping = threading.Thread(target=engine.step)
    adding = threading.Thread(target=engine.add_adapter, args=("c", matrices("c")))
    stepping.start()
    in_step.wait(10)
    adding.start()
    adding.join(0.1)
    assert adding.is_alive() and "c" not in backend.adapters
    go.set()
    stepping.join()
    adding.join()
    assert "c" in engine.adapters


def test_scores_are_those_of_the_adapter() -> None:
    engine, _ = make()
    sequence = engine.submit_scores(Request(tokens=[4, 5, 6], adapter="b"))
    rows = [progress.logits_RV for progress in engine.step() if progress.sequence is sequence]
    offset = fake_adapter("b")
    assert rows[0] is not None and rows[0][-1].tobytes() == fake_logits([4 + offset, 5 + offset, 6 + offset], VOCAB).tobytes()
