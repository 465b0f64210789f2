"""Prompts that are scored, ends of text that are given, and what no engine can do, on the local provider."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fakes import FakeBackend, FakeFormat, FakeStream, FakeTokenizer, fake_logits
from herd.engine.engine import Engine
from herd.engine.request import Progress
from herd.errors import CapacityError, UsageError
from herd.providers.answering import Answering
from herd.providers.base import Caller, CompletionRequest, Event, Failed, Finished, ModelFacts, Priority, Prompted, Text
from herd.providers.local import LocalProvider
from herd.sampling.chain import log_sum_exp
from herd.sampling.params import SamplingParams

VOCAB = 259
FACTS = ModelFacts(name="fake", context_length=512, vocab_size=VOCAB, fingerprint="fake-1")


def make(**options: Any) -> LocalProvider:
    engine = Engine(FakeBackend(VOCAB), context_length=512, num_pages=8, **options)
    return LocalProvider(engine, FakeTokenizer(), None, FACTS)


def ask(provider: LocalProvider, prompt: str | Sequence[int] = "hi", **choices: Any) -> list[Event]:
    settings: dict[str, Any] = {"sampling": SamplingParams(temperature=0.0), "max_tokens": 3, **choices}
    return list(provider.complete(CompletionRequest(prompt=prompt, **settings)))


def test_a_scored_prompt_has_the_probabilities_that_the_model_gives_its_tokens() -> None:
    ids = [256, *b"some text that fills more than a page" * 3]
    events = ask(make(), ids, score_prompt=True, sampling=SamplingParams(logprobs=2), max_tokens=1)
    assert [type(event) for event in events] == [Prompted, Text, Finished]
    prompted = events[0]
    assert isinstance(prompted, Prompted) and [each.token for each in prompted.tokens] == ids
    assert math.isnan(prompted.tokens[0].logprob) and prompted.tokens[0].top == ()
    for index, each in enumerate(prompted.tokens[1:], 1):
        row = fake_logits(ids[:index], VOCAB).astype(np.float64)
        assert each.logprob == row[each.token] - log_sum_exp(row)
        assert each.top[0] == (int(np.argmax(row)), float(row.max() - log_sum_exp(row))) and len(each.top_data) == len(each.top) == 2


def test_the_answer_after_a_scored_prompt_is_the_same_as_without() -> None:
    with_scores, without = ask(make(), score_prompt=True), ask(make())
    assert with_scores[1:-1] == without[:-1]
    assert isinstance(with_scores[-1], Finished) and with_scores[-1].usage.completion_tokens == 3


def test_a_prompt_can_be_scored_without_an_answer() -> None:
    events = ask(make(), score_prompt=True, max_tokens=0)
    assert [type(event) for event in events] == [Prompted, Finished]


def test_closing_while_the_prompt_is_scored_gives_the_pages_back() -> None:
    provider = make()
    events = provider.complete(CompletionRequest(prompt="x" * 300, sampling=SamplingParams(), score_prompt=True))
    next(iter(events))
    events.close()  # type: ignore[attr-defined]
    assert provider.engine.load.owned_pages == 0
    provider.engine.check()


def test_answers_to_one_question_differ_by_their_index_only() -> None:
    sampling = SamplingParams(temperature=1.5, seed=7)
    found = [ask(make(), sampling=sampling, choice_index=index, max_tokens=12)[:-1] for index in (0, 1, 0)]
    assert found[0] == found[2] != found[1]


def test_what_one_caller_asked_is_not_found_by_another() -> None:
    provider = make()

    def cached(salt: bytes) -> int:
        last = ask(provider, "x" * 200, caller=Caller("someone", salt, Priority.LOW))[-1]
        assert isinstance(last, Finished)
        return last.usage.cached_tokens

    assert [cached(b"a"), cached(b"b"), cached(b"a")] == [0, 0, 200]


def test_time_that_is_over_fails_an_answer_or_is_raised_if_nothing_was_said() -> None:
    with pytest.raises(CapacityError, match="time"):
        ask(make(), deadline_s=0.0)
    times = iter([0.0] * 60)
    engine = Engine(FakeBackend(VOCAB), context_length=512, num_pages=8, clock=lambda: next(times, 99.0))
    provider = LocalProvider(engine, FakeTokenizer(), None, FACTS)
    events = ask(provider, [1, 2], deadline_s=5.0, max_tokens=400, stop=(), ignore_end=True)
    assert isinstance(events[-1], Failed) and isinstance(events[-1].error, CapacityError) and len(events) > 1


def test_a_suffix_needs_a_model_that_was_taught_to_fill_in_and_a_text() -> None:
    with pytest.raises(UsageError, match="text; token ids were given"):
        ask(make(), [1, 2], suffix="end")


def test_an_adapter_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="nobody"):
        ask(make(), adapter="nobody")


TURN = 258


class NamedTokenizer(FakeTokenizer):
    """Control tokens have names, which a stream says of those that it is to show."""

    def token_bytes(self, token: int) -> bytes:
        return b"<turn>" if token == TURN else super().token_bytes(token)

    def stream(self, shown: frozenset[int] = frozenset()) -> FakeStream:
        stream = NamedStream()
        stream.shown = shown
        return stream


class NamedStream(FakeStream):
    shown: frozenset[int] = frozenset()
    is_between = True

    def push(self, token: int) -> str:
        return "<turn>" if token in self.shown else super().push(token)


class ShowingFormat(FakeFormat):
    mark_ids = frozenset({TURN})


def test_a_mark_that_an_answer_with_tools_shows_is_no_text_of_another_answer() -> None:
    pieces: dict[int, tuple[str, bytes]] = {}
    sequence: Any = None
    tools = Answering(NamedTokenizer(), 1, lambda: 0.0, parsed_by=ShowingFormat(), pieces=pieces)  # type: ignore[arg-type]
    plain = Answering(NamedTokenizer(), 1, lambda: 0.0, pieces=pieces)  # type: ignore[arg-type]
    for answering in (tools, plain):
        answering.start()
        for token in (*b"ab", TURN):
            answering.push(Progress(sequence=sequence, token=token))
    assert pieces == {ord(each): (each, each.encode()) for each in "ab"}
