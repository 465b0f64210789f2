"""Sequences that are held to a language: the same bits alone and in company, forced tokens in one step, defined ends and errors."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engine.engines import all_back, drive
from engine.test_speculation import FakeDrafter
from fakes import FakeBackend, fake_logits
from herd.engine.engine import Engine
from herd.engine.lookup import LookupDrafter
from herd.engine.request import Request
from herd.engine.speculative import Speculation
from herd.errors import UsageError
from herd.sampling.chain import log_sum_exp
from herd.sampling.constraint import Constraint
from herd.sampling.grammar import Grammars, Spelling
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason
from spelled import STOP, TOKENS, VOCAB, encode, lark, make_grammars, regex, schema, text_of

NAMED = schema(
    {
        "type": "object",
        "properties": {"name": {"enum": ["abc", "abcabcabc", "é12"]}, "ok": {"type": "boolean"}, "n": {"type": "integer", "maximum": 12}},
        "required": ["name", "ok"],
        "additionalProperties": False,
    }
)
LITERAL = lark('start: "{\\"name\\": " ("true" | "null") ", name name name 12 12 abcabc" /[0-9]{1,3}/ "}"')
WORDS = regex("([a-c]{3}, ){2,6}")
GREEDY = SamplingParams(temperature=0.0, seed=1)
SAMPLED = SamplingParams(temperature=1.2, top_p=0.95, seed=5, logprobs=2, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = make_grammars()
    yield made
    made.close()


def make(backend: FakeBackend | None = None, **options: Any) -> Engine:
    settings: dict[str, Any] = {"context_length": 512, "stop_ids": {STOP}, "num_pages": 32, "max_batch": 8, **options}
    return Engine(backend or FakeBackend(VOCAB), **settings)


def held(
    grammars: Grammars, constraint: Constraint, seed: int = 0, stop_ids: frozenset[int] = frozenset({STOP}), **choices: Any
) -> Request:
    chance = random.Random(seed)
    sampling = SamplingParams(temperature=1.2, top_p=0.95, seed=seed, repetition_penalty=1.1) if seed % 2 else GREEDY
    settings: dict[str, Any] = {"sampling": sampling, "max_tokens": 200, **choices}
    tokens = [chance.randrange(STOP) for _ in range(chance.choice([3, 64, 90]))]
    return Request(tokens=tokens, stop_ids=stop_ids, matcher=grammars.matcher(constraint, stop_ids), **settings)


def requests(grammars: Grammars) -> list[Request]:
    """Made anew each time: a matcher is of one answer."""
    return [held(grammars, each, seed) for seed, each in enumerate([NAMED, LITERAL, WORDS] * 4)]


def free() -> list[Request]:
    return [Request(tokens=[9] * size, sampling=SAMPLED, max_tokens=40, stop_ids=()) for size in (5, 100, 130)]


def alone(grammars: Grammars, **options: Any) -> list[list[tuple[int, float]]]:
    return [drive(make(**options), [request])[0] for request in requests(grammars)]


def test_what_is_drawn_is_in_the_language(grammars: Grammars) -> None:
    for index, answer in enumerate(alone(grammars)):
        text = text_of([token for token, _ in answer])
        if index % 3 == 0:
            found = json.loads(text)
            assert found["name"] in ("abc", "abcabcabc", "é12") and isinstance(found["ok"], bool) and set(found) <= {"name", "ok", "n"}
        elif index % 3 == 1:
            assert text.startswith('{"name": ') and text.endswith("}") and "name name name 12 12 abcabc" in text
        else:
            assert 2 <= text.count(", ") <= 6 and set(text) <= set("abc, ")


@pytest.mark.parametrize("options", [{}, {"max_step_tokens": 8}, {"max_step_tokens": 11, "max_step_outputs": 9}, {"num_pages": 10}])
def test_company_chunks_and_preemption_change_neither_tokens_nor_bits(grammars: Grammars, options: dict[str, Any]) -> None:
    engine = make(**options)
    found = drive(engine, [*free(), *requests(grammars)])[3:]
    assert found == alone(grammars)
    all_back(engine)


@pytest.mark.parametrize("kind", ["right by half", "wrong", "lookup"])
def test_drafts_change_neither_tokens_nor_bits(grammars: Grammars, kind: str) -> None:
    truth = {tuple(r.tokens): [t for t, _ in answer] for r, answer in zip(requests(grammars), alone(grammars), strict=True)}
    chance = random.Random(3)

    def guess(sequence: Any, tokens: list[int]) -> int:
        answer = truth.get(tuple(tokens[: sequence.num_prompt]), [])
        at = len(tokens) - sequence.num_prompt
        is_right = at < len(answer) and (kind == "right by half" and chance.random() < 0.8)
        return answer[at] if is_right else chance.randrange(VOCAB)

    backend = FakeBackend(VOCAB)
    drafter: Any = LookupDrafter() if kind == "lookup" else FakeDrafter(guess)
    speculation = Speculation(drafter, clock=lambda: float(len(backend.plans)))
    engine = make(backend, speculation=speculation)
    assert drive(engine, [*free(), *requests(grammars)])[3:] == alone(grammars)
    all_back(engine)


def test_forced_tokens_are_computed_together_and_have_the_probabilities_that_the_model_gives(grammars: Grammars) -> None:
    backend = FakeBackend(VOCAB)
    request = held(grammars, LITERAL, 1)
    (answer,) = drive(make(backend), [request])
    assert len(backend.plans) < len(answer) / 2
    tokens = list(request.tokens)
    for token, logprob in answer:
        row = fake_logits(tokens, VOCAB).astype(np.float64)
        assert logprob == pytest.approx(float(row[token] - log_sum_exp(row)), abs=1e-9)
        tokens.append(token)


def test_forced_text_is_spelled_as_the_tokenizer_spells_it(grammars: Grammars) -> None:
    (answer,) = drive(make(), [held(grammars, LITERAL, 1)])
    ids = [token for token, _ in answer]
    middle = encode(", name name name 12 12 abcabc")
    assert any(ids[at : at + len(middle) - 1] == middle[:-1] for at in range(len(ids)))


def test_an_answer_to_which_nothing_can_be_added_has_ended(grammars: Grammars) -> None:
    """Also of a model that has no stop tokens, and where the last token is the last that was allowed."""
    for stop_ids in (frozenset({STOP}), frozenset()):
        request = held(grammars, regex("[ab]c[ab]"), 0, stop_ids)
        engine = make()
        progress = list(engine.run(request))
        assert [p.stop_reason for p in progress if p.is_last] == [StopReason.END]
        assert progress[-1].token is None
        assert len(text_of([p.token for p in progress if p.token is not None])) == 3
        count = sum(p.token is not None for p in progress)
        again = list(engine.run(held(grammars, regex("[ab]c[ab]"), 0, stop_ids, max_tokens=count)))
        assert again[-1].stop_reason is StopReason.END
        cut = list(engine.run(held(grammars, regex("[ab]c[ab]"), 0, stop_ids, max_tokens=count - 1)))
        assert cut[-1].stop_reason is StopReason.LENGTH
        all_back(engine)


def test_a_stop_token_comes_only_where_the_language_ends(grammars: Grammars) -> None:
    for seed in range(12):
        sampling = SamplingParams(temperature=1.0, seed=seed, logit_bias={STOP: 100.0})
        progress = list(make().run(held(grammars, WORDS, seed, sampling=sampling)))
        assert text_of([p.token for p in progress if p.token is not None]).count(", ") == 2
        assert progress[-1].stop_reason is StopReason.END and progress[-1].token == STOP


def test_an_answer_that_cannot_go_on_fails_and_the_others_do_not_notice() -> None:
    """The vocabulary has no digits, which the grammar demands after one of two beginnings."""
    tokens = [b"" if token.isdigit() or token == b"12" else token for token in TOKENS]
    made = Grammars(lambda: Spelling(tokens, {STOP, STOP + 1}, encode))
    try:
        engine = make()
        failing = held(made, lark('start: "x" /[0-9]/ | "yy"'), 0, sampling=SamplingParams(temperature=0.0, logit_bias={ord("x"): 100.0}))
        other = held(made, WORDS, 3)
        sequences = [engine.submit(each) for each in (*free(), failing, other)]
        while engine.load.running or engine.load.waiting:
            engine.step()
            engine.check()
        problem = sequences[3].error
        assert isinstance(problem, UsageError) and "cannot be held to the grammar any further" in str(problem)
        assert [s.error for s in sequences if s is not sequences[3]] == [None] * 4
        assert sequences[4].answer == [token for token, _ in drive(make(), [held(made, WORDS, 3)])[0]]
        all_back(engine)
    finally:
        made.close()
