"""The local provider on a fake backend: whole characters, stop texts, usage, and endings of every kind."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fakes import FakeBackend, FakeFormat, FakeTokenizer, fake_logits
from herd.backends.base import Plan, StepResult
from herd.engine.engine import Engine
from herd.errors import FileProblem, UsageError
from herd.providers.base import Called, ChatRequest, CompletionRequest, Event, Failed, Finished, ModelFacts, Text
from herd.providers.local import LocalProvider
from herd.sampling.chain import Choice
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason
from herd.text.messages import Image, Message, Role, Tool

VOCAB, EOS, TURN = 259, 257, 258
GREEDY = SamplingParams(temperature=0.0)
FACTS = ModelFacts(name="fake", context_length=512, vocab_size=VOCAB, fingerprint="fake-1")


class Parrot(FakeBackend):
    """Says given bytes or tokens, whatever the prompt."""

    def __init__(self, says: Sequence[int], prompt_tokens: int, **options: object) -> None:
        super().__init__(VOCAB, **options)  # type: ignore[arg-type]
        self.says = list(says)
        self.prompt_tokens = prompt_tokens

    def step(self, plan: Plan) -> StepResult:
        result = super().step(plan)
        at = [[draw.position - self.prompt_tokens for draw in span.draws] for span in plan.spans]
        return StepResult(tuple(tuple(Choice(self.says[i], -0.5, ((1, -0.5),)) for i in each) for each in at), result.logits_RV)


def parrot(says: bytes | Sequence[int], prompt: str = "hi", **options: object) -> tuple[LocalProvider, Engine]:
    engine = Engine(Parrot(list(says), len(prompt) + 1, **options), context_length=512, stop_ids={EOS}, num_pages=8)
    times = itertools.count()
    return LocalProvider(engine, FakeTokenizer(), FakeFormat(), FACTS, clock=lambda: float(next(times))), engine


def texts(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Text)]


def tokens(events: Sequence[Event]) -> list[int]:
    return [token.token for event in events if isinstance(event, Text) for token in event.tokens]


def all_back(engine: Engine) -> None:
    engine.check()
    assert engine.load.owned_pages == engine.load.running == engine.load.waiting == 0


def complete(provider: LocalProvider, stop: Sequence[str] = (), max_tokens: int | None = None) -> list[Event]:
    return list(provider.complete(CompletionRequest(prompt="hi", sampling=GREEDY, stop=stop, max_tokens=max_tokens)))


def test_an_answer_is_text_and_then_finished_with_usage() -> None:
    provider, engine = parrot([*b"Yes.", EOS])
    events = complete(provider)
    assert texts(events) == ["Y", "e", "s", ".", ""]
    assert tokens(events) == [*b"Yes.", EOS], "the token that ended the answer belongs to the last text event"
    last = events[-1]
    assert isinstance(last, Finished) and last.stop_reason is StopReason.END and last.stop_text is None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (3, 5, 0)
    assert (last.usage.prompt_s, last.usage.decode_s) == (1.0, 4.0), "the clock was read at the start and at each token"
    all_back(engine)


def test_characters_come_whole_and_carry_their_tokens() -> None:
    provider, _ = parrot([*"né🙂!".encode(), EOS])
    events = [event for event in complete(provider) if isinstance(event, Text)]
    assert [(event.text, len(event.tokens)) for event in events] == [("n", 1), ("é", 2), ("🙂", 4), ("!", 1), ("", 1)]
    assert events[1].tokens[0].data == b"\xc3" and events[1].tokens[0].logprob == -0.5 and events[1].tokens[0].top == ((1, -0.5),)


def test_half_a_character_at_the_end_becomes_the_replacement_character() -> None:
    provider, _ = parrot("é".encode())
    assert texts(complete(provider, max_tokens=1)) == ["\ufffd"]


def test_a_stop_text_is_cut_off_and_no_part_of_it_is_ever_said() -> None:
    provider, engine = parrot(b"one STop two STOP three")
    events = complete(provider, stop=["STOP"])
    assert "".join(texts(events)) == "one STop two "
    assert "S" not in texts(events), "what may become a stop text is held back"
    last = events[-1]
    assert isinstance(last, Finished) and last.stop_reason is StopReason.STOP_TEXT and last.stop_text == "STOP"
    assert last.usage.completion_tokens == len("one STop two STOP") == len(tokens(events))
    all_back(engine)


def test_what_was_held_back_is_said_when_the_answer_ends() -> None:
    provider, _ = parrot([*b"x STO", EOS])
    assert "".join(texts(complete(provider, stop=["STOP"]))) == "x STO"
    provider, _ = parrot(b"x STOP")
    events = complete(provider, stop=["STOP"], max_tokens=5)
    assert "".join(texts(events)) == "x STO" and isinstance(events[-1], Finished)
    assert events[-1].stop_reason is StopReason.LENGTH


def test_pages_are_back_before_the_last_event() -> None:
    provider, engine = parrot(b"abcSTOP....")
    for event in provider.complete(CompletionRequest(prompt="hi", sampling=GREEDY, stop=["STOP"])):
        if isinstance(event, Finished):
            all_back(engine)


def test_closing_the_events_early_gives_the_pages_back() -> None:
    provider, engine = parrot(b"abcdefgh")
    events = provider.complete(CompletionRequest(prompt="hi", sampling=GREEDY))
    next(events)
    assert engine.load.running == 1
    events.close()  # type: ignore[attr-defined]
    all_back(engine)


def test_events_nobody_asked_for_cost_nothing() -> None:
    provider, engine = parrot(b"abc")
    provider.complete(CompletionRequest(prompt="hi", sampling=GREEDY))
    assert engine.load.waiting == 0 and not engine.backend.plans  # type: ignore[attr-defined]


def test_chat_is_rendered_and_ends_at_the_formats_stop_token() -> None:
    message = Message(Role.USER, "hi")
    rendered = FakeFormat().render([message])
    provider, engine = parrot([*b"Hello", TURN], prompt="x" * (len(rendered) - 1))
    events = list(provider.chat(ChatRequest(messages=[message], sampling=GREEDY)))
    assert "".join(texts(events)) == "Hello" and isinstance(events[-1], Finished)
    assert events[-1].usage.prompt_tokens == len(rendered)
    assert engine.backend.plans[0].spans[0].tokens == rendered  # type: ignore[attr-defined]


def test_the_next_turn_finds_the_last_one_in_the_cache() -> None:
    engine = Engine(FakeBackend(VOCAB), context_length=512, num_pages=8)
    provider = LocalProvider(engine, FakeTokenizer(), FakeFormat(), FACTS)
    turns = [Message(Role.USER, "x" * 100)]
    list(provider.chat(ChatRequest(messages=turns, sampling=GREEDY, max_tokens=1)))
    turns += [Message(Role.ASSISTANT, "y"), Message(Role.USER, "z")]
    last = list(provider.chat(ChatRequest(messages=turns, sampling=GREEDY, max_tokens=1)))[-1]
    assert isinstance(last, Finished) and last.usage.cached_tokens >= 100


def test_an_error_before_the_first_text_is_raised_and_a_later_one_is_an_event() -> None:
    provider, engine = parrot(b"abcdef", spoiled=lambda ids: len(ids) == 3)
    with pytest.raises(FileProblem):
        complete(provider)
    all_back(engine)
    provider, engine = parrot(b"abcdef", spoiled=lambda ids: len(ids) == 5)
    events = complete(provider)
    assert texts(events) == ["a", "b"] and isinstance(events[-1], Failed) and isinstance(events[-1].error, FileProblem)
    all_back(engine)


def test_the_seed_that_was_drawn_is_returned_and_repeats_the_answer() -> None:
    engine = Engine(FakeBackend(VOCAB), context_length=512, num_pages=8)
    provider = LocalProvider(engine, FakeTokenizer(), None, FACTS)
    first = list(provider.complete(CompletionRequest(prompt="a", sampling=SamplingParams(), max_tokens=20)))
    assert isinstance(first[-1], Finished)
    again = SamplingParams(seed=first[-1].seed)
    second = list(provider.complete(CompletionRequest(prompt="a", sampling=again, max_tokens=20)))
    assert tokens(first) == tokens(second)


def test_without_a_tokenizer_ids_work_and_text_does_not() -> None:
    engine = Engine(FakeBackend(VOCAB), context_length=512, num_pages=8)
    provider = LocalProvider(engine, None, None, FACTS)
    with pytest.raises(FileProblem, match="without a tokenizer"):
        provider.complete(CompletionRequest(prompt="text", sampling=GREEDY))
    with pytest.raises(FileProblem, match="without a tokenizer"):
        provider.encode("text")
    with pytest.raises(UsageError, match="stop texts"):
        provider.complete(CompletionRequest(prompt=[1], sampling=GREEDY, stop=["x"]))
    events = list(provider.complete(CompletionRequest(prompt=[1, 2], sampling=GREEDY, max_tokens=3)))
    assert len(tokens(events)) == 3 and texts(events) == ["", "", ""]


def test_without_a_chat_format_the_error_says_what_to_do() -> None:
    engine = Engine(FakeBackend(VOCAB), context_length=512, num_pages=8)
    provider = LocalProvider(engine, FakeTokenizer(), None, FACTS)
    with pytest.raises(UsageError, match=r"base model.*herd run"):
        provider.chat(ChatRequest(messages=[Message(Role.USER, "hi")], sampling=GREEDY))


@pytest.mark.parametrize(
    ("prompt", "stop"), [([], ()), ([VOCAB], ()), ([-1], ()), ([1] * 513, ()), ([1], [""]), ([1], ["x"] * 17), ([1], "text")]
)
def test_impossible_requests_are_refused_at_the_call(prompt: list[int], stop: Sequence[str]) -> None:
    provider, engine = parrot(b"abc")
    with pytest.raises(UsageError):
        provider.complete(CompletionRequest(prompt=prompt, sampling=GREEDY, stop=stop))
    assert not engine.backend.plans  # type: ignore[attr-defined]


def test_the_scorer_gives_a_row_per_position() -> None:
    engine = Engine(FakeBackend(VOCAB), context_length=512, num_pages=8)
    provider = LocalProvider(engine, FakeTokenizer(), None, FACTS)
    ids = provider.encode("some text", bos=False)
    rows = np.concatenate(list(provider.logits(ids)))
    np.testing.assert_array_equal(rows, [fake_logits(ids[: end + 1], VOCAB) for end in range(len(ids))])


# Tools, formats and further ends

TOOL = Tool("f", "does", {"type": "object"})


def ask(provider: LocalProvider, **choices: Any) -> list[Event]:
    return list(provider.chat(ChatRequest(messages=[Message(Role.USER, "hi")], sampling=GREEDY, **choices)))


def talking(says: bytes, **choices: Any) -> LocalProvider:
    """A provider that answers any chat so."""
    prompt = FakeFormat().render([Message(Role.USER, "hi")])
    engine = Engine(Parrot([*says, TURN], len(prompt)), context_length=512, stop_ids={EOS}, num_pages=8)
    return LocalProvider(engine, FakeTokenizer(), FakeFormat(), FACTS, **choices)


def test_calls_of_offered_tools_are_events_and_no_text() -> None:
    says = b'Wait. <function=f>{"a": 1}</function> Done.'
    events = ask(talking(says), tools=[TOOL])
    assert "".join(texts(events)) == "Wait.  Done."
    calls = [event.call for event in events if isinstance(event, Called)]
    assert [(call.name, call.arguments) for call in calls] == [("f", {"a": 1})]
    order = [type(event) for event in events]
    assert order.index(Called) < len(order) - 1 and order[-1] is Finished
    assert tokens(events) == [*says, TURN], "every token is in one text event"


def test_an_answer_that_is_all_call_has_its_tokens_in_an_empty_text() -> None:
    events = ask(talking(b'{"name": "f", "parameters": {}}'), tools=[TOOL])
    assert texts(events) == [""] and [type(event) for event in events] == [Called, Text, Finished]
    assert tokens(events) == [*b'{"name": "f", "parameters": {}}', TURN]


def test_without_tools_an_answer_is_never_a_call() -> None:
    says = b'{"name": "f", "parameters": {}}'
    assert "".join(texts(ask(talking(says)))) == says.decode()
    assert "".join(texts(ask(talking(b'{"name": "g", "parameters": {}}'), tools=[TOOL]))) == '{"name": "g", "parameters": {}}'


def test_closing_a_chat_with_tools_early_gives_the_pages_back() -> None:
    provider, engine = parrot(b"abcdefgh" * 20, prompt="x" * (len(FakeFormat().render([Message(Role.USER, "hi")])) - 1))
    events = provider.chat(ChatRequest(messages=[Message(Role.USER, "hi")], sampling=GREEDY, tools=[TOOL]))
    next(events)
    events.close()  # type: ignore[attr-defined]
    all_back(engine)


def test_a_format_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="format='meta' is not possible: the chat format turns is not one of Meta's"):
        ask(talking(b""), format="meta")
    with pytest.raises(UsageError, match="format is 'alpaca'; it must be 'template' or 'meta'"):
        ask(talking(b""), format="alpaca")
    assert "".join(texts(ask(talking(b"Hi", meta_format=FakeFormat()), format="meta"))) == "Hi"


def test_pictures_are_refused_by_a_model_without_eyes() -> None:
    request = ChatRequest(messages=[Message(Role.USER, (Image(b"x"),))], sampling=GREEDY)
    with pytest.raises(UsageError, match="fake reads text only; the conversation has 1 pictures"):
        talking(b"").chat(request)


def test_a_completion_may_have_ends_of_its_own() -> None:
    provider, _ = parrot(b"one;two")
    request = CompletionRequest(prompt="hi", sampling=GREEDY, stop_ids={ord(";")})
    assert "".join(texts(list(provider.complete(request)))) == "one"


def test_an_answer_that_ignores_its_end_has_the_length_that_was_asked_for() -> None:
    provider, engine = parrot([*b"No", EOS, *b"or"])
    events = list(provider.complete(CompletionRequest(prompt="hi", sampling=GREEDY, max_tokens=5, ignore_end=True)))
    assert tokens(events) == [*b"No", EOS, *b"or"]
    assert isinstance(events[-1], Finished) and events[-1].stop_reason is StopReason.LENGTH
    all_back(engine)
