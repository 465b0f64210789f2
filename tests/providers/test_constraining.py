"""What an answer must be: schemas, grammars and calls of tools, held to by a model of random weights, where luck cannot help."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conformance.running import cpu_is_built, make_backend, torch_is_installed
from herd.backends.base import Plan, StepResult
from herd.engine.engine import Engine
from herd.engine.lookup import LookupDrafter
from herd.engine.speculative import Speculation
from herd.errors import UsageError
from herd.providers.base import (
    Called,
    Calling,
    ChatRequest,
    CompletionRequest,
    Event,
    Finished,
    ModelFacts,
    Text,
    ToolChoice,
    ToolUse,
)
from herd.providers.constraining import Constraining
from herd.providers.local import LocalProvider
from herd.sampling.chain import choose
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason
from herd.text.formats import ChatFormat
from herd.text.formats.chatml import ChatML
from herd.text.messages import Message, Role
from herd.text.tools import read_tools
from text.test_call_grammars import ALL, BYTES, FORMATS, TOOLS, check_arguments
from tiny import random_leaves, tiny_llama

CFG = tiny_llama(vocab_size=BYTES.vocab_size, num_layers=1, context_length=4096)
LEAVES = random_leaves(CFG)
FACTS = ModelFacts(name="random", context_length=4096, vocab_size=BYTES.vocab_size, fingerprint="x")
CONSTRAINING = Constraining(BYTES, BYTES.vocab_size)
REQUIRED = ToolChoice(ToolUse.REQUIRED)
(SIMPLE,) = read_tools([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}])


def make(chat_format: ChatFormat, backend: Any = None, **options: Any) -> LocalProvider:
    engine = Engine(backend or make_backend("reference", CFG, LEAVES), context_length=4096, stop_ids=BYTES.eos_ids, num_pages=64, **options)
    provider = LocalProvider(engine, BYTES, chat_format, FACTS)
    provider._constraining = CONSTRAINING  # one process that compiles, for all
    return provider


def asked(seed: int = 0, **choices: Any) -> ChatRequest:
    sampling = SamplingParams(temperature=1.0, seed=seed, logprobs=1)
    return ChatRequest(messages=[Message(Role.USER, "hi")], **{"sampling": sampling, "max_tokens": 600, **choices})


def calls_of(events: Sequence[Event]) -> list[Any]:
    return [event.call for event in events if isinstance(event, Called)]


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def reason(events: Sequence[Event]) -> StopReason:
    assert isinstance(events[-1], Finished)
    return events[-1].stop_reason


def check_pieces(events: Sequence[Event]) -> int:
    """What the pieces of each call spell is what the call has; they come before it, in order. How many calls came in pieces."""
    texts: dict[str, str] = defaultdict(str)
    index = 0
    for event in events:
        if isinstance(event, Calling):
            assert event.index == index
            texts[event.call_id] += event.arguments
        elif isinstance(event, Called):
            index += 1
            if event.call.id in texts:
                assert json.loads(texts[event.call.id]) == event.call.arguments
    return len(texts)


@ALL
def test_a_demanded_call_is_made_by_any_model_in_any_format(name: str) -> None:
    provider = make(FORMATS[name][0])
    for seed in range(3):
        events = list(provider.chat(asked(seed, tools=TOOLS, tool_choice=REQUIRED)))
        calls = calls_of(events)
        assert calls and reason(events) is StopReason.END and not text_of(events).strip()
        for call in calls:
            check_arguments(call)
        check_pieces(events)


@ALL
def test_a_named_tool_is_called_once(name: str) -> None:
    provider = make(FORMATS[name][0])
    for seed, tool in enumerate(("now", "get.Weather", "files/list-all")):
        events = list(provider.chat(asked(seed, tools=TOOLS, tool_choice=ToolChoice(ToolUse.NAMED, tool))))
        (call,) = calls_of(events)
        assert call.name == tool and reason(events) is StopReason.END
        check_arguments(call)


def test_arguments_of_demanded_calls_come_in_pieces() -> None:
    events = list(make(FORMATS["llama3.1"][0]).chat(asked(1, tools=TOOLS, tool_choice=ToolChoice(ToolUse.NAMED, "get.Weather"))))
    assert check_pieces(events) == 1 and sum(isinstance(event, Calling) for event in events) > 3


def test_a_call_that_is_cut_off_is_no_call_and_no_text() -> None:
    named = ToolChoice(ToolUse.NAMED, "get.Weather")
    events = list(make(FORMATS["llama3.1"][0]).chat(asked(1, tools=TOOLS, tool_choice=named, max_tokens=25)))
    assert reason(events) is StopReason.LENGTH and calls_of(events) == [] and text_of(events) == ""
    assert any(isinstance(event, Calling) for event in events)


def test_every_token_is_in_one_text_event() -> None:
    events = list(make(FORMATS["llama3.1"][0]).chat(asked(2, tools=TOOLS, tool_choice=REQUIRED)))
    assert isinstance(events[-1], Finished)
    assert sum(len(event.tokens) for event in events if isinstance(event, Text)) == events[-1].usage.completion_tokens


@pytest.mark.skipif(not cpu_is_built(), reason="the native module is not built")
def test_held_answers_are_the_same_alone_and_in_company_with_and_without_drafts() -> None:
    """To the bits of their probabilities, on the cpu backend, and the same text on the reference."""
    schema = Constraint(
        ConstraintKind.JSON_SCHEMA, json.dumps({"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}, "required": ["a"]})
    )
    requests = [asked(seed, tools=TOOLS, tool_choice=REQUIRED) for seed in range(3)]
    requests += [asked(7, constraint=schema), asked(8, tools=TOOLS, max_tokens=30), asked(9, max_tokens=20)]
    chat_format = FORMATS["llama3.1"][0]

    def tokens(events: Sequence[Event]) -> list[tuple[int, float]]:
        return [(token.token, token.logprob) for event in events if isinstance(event, Text) for token in event.tokens]

    alone = [tokens(list(make(chat_format, make_backend("cpu", CFG, LEAVES)).chat(request))) for request in requests]
    for options in ({}, {"max_step_tokens": 16, "max_batch": 6}, {"speculation": Speculation(LookupDrafter())}):
        provider = make(chat_format, make_backend("cpu", CFG, LEAVES), **options)
        iterators = [iter(provider.chat(request)) for request in requests]
        found: list[list[Event]] = [[] for _ in requests]
        while any(iterator is not None for iterator in iterators):
            for index, iterator in enumerate(iterators):
                event = next(iterator, None) if iterator is not None else None
                if event is None:
                    iterators[index] = None  # type: ignore[call-overload]
                else:
                    found[index].append(event)
        assert [tokens(events) for events in found] == alone
    reference = make(chat_format)
    assert [[t for t, _ in tokens(list(reference.chat(r)))] for r in requests[:4]] == [[t for t, _ in each] for each in alone[:4]]


@pytest.mark.parametrize(
    "backend",
    [
        "reference",
        pytest.param("cpu", marks=pytest.mark.skipif(not cpu_is_built(), reason="the native module is not built")),
        pytest.param("torch", marks=pytest.mark.skipif(not torch_is_installed(), reason="torch is not installed")),
    ],
)
def test_response_format_and_regular_expressions_hold_the_text(backend: str) -> None:
    provider = make(FORMATS["llama3.1"][0], make_backend(backend, CFG, LEAVES, activations="float32"))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n", "ok"]}
    for seed in range(3):
        held = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps({**schema, "additionalProperties": False}))
        value = json.loads(text_of(list(provider.chat(asked(seed, constraint=held)))))
        assert set(value) == {"n", "ok"}
        pattern = Constraint(ConstraintKind.REGEX, "[a-f]{4}-[0-9]{2}")
        request = CompletionRequest(prompt="hi", sampling=SamplingParams(seed=seed, temperature=float(seed % 2)), constraint=pattern)
        assert re.fullmatch(pattern.text, text_of(list(provider.complete(request))))


def test_beside_tools_a_held_answer_is_a_text_of_the_constraint_or_calls() -> None:
    provider = make(FORMATS["llama3.1"][0])
    held = Constraint(ConstraintKind.REGEX, "yes|no")
    kinds = set()
    for seed in range(12):
        events = list(provider.chat(asked(seed, tools=[SIMPLE], constraint=held)))
        kinds.add(bool(calls_of(events)))
        assert calls_of(events) or text_of(events) in ("yes", "no")
    assert False in kinds


def test_where_no_tool_may_be_called_none_is_offered_and_none_is_read() -> None:
    provider = make(FORMATS["llama3.1"][0])
    assert provider.prompt(asked(tools=TOOLS, tool_choice=ToolChoice(ToolUse.NONE))) == provider.prompt(asked())
    events = list(provider.chat(asked(1, tools=TOOLS, tool_choice=ToolChoice(ToolUse.NONE), max_tokens=9)))
    assert text_of(events) == text_of(list(provider.chat(asked(1, max_tokens=9))))


@pytest.mark.parametrize(
    ("choices", "message", "param"),
    [
        ({"tool_choice": REQUIRED}, "offers no tools", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": ToolChoice(ToolUse.NAMED, "noww")}, "did you mean 'now'", "tool_choice"),
        ({"constraint": Constraint(ConstraintKind.JSON_SCHEMA, "{")}, "no JSON", "response_format"),
        ({"constraint": Constraint(ConstraintKind.REGEX, "(")}, "regular expression", "response_format"),
    ],
)
def test_what_cannot_be_demanded_is_refused_at_the_call(choices: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make(FORMATS["llama3.1"][0]).chat(asked(**choices))
    assert caught.value.param == param


def test_a_format_without_tools_refuses_a_demanded_call() -> None:
    with pytest.raises(UsageError, match="defines none"):
        make(ChatML(BYTES)).chat(asked(tools=[SIMPLE], tool_choice=REQUIRED))


def test_a_strict_tool_whose_schema_cannot_be_held_to_is_refused_and_another_is_called_freely() -> None:
    parameters = {"type": "object", "properties": {"a": {"minimum": 3, "maximum": 1, "type": "integer"}}, "required": ["a"]}
    for strict in (True, False):
        tools = read_tools([{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}}])
        if strict:
            with pytest.raises(UsageError, match="the schemas of the tools cannot be held to") as caught:
                make(FORMATS["llama3.1"][0]).chat(asked(tools=tools))
            assert caught.value.param == "tools"
        else:
            assert isinstance(list(make(FORMATS["llama3.1"][0]).chat(asked(tools=tools, max_tokens=5)))[-1], Finished)


class Scripted:
    """A backend whose model wants to say a text, one token after another, wherever it may."""

    def __init__(self, inner: Any, chat_format: ChatFormat, request: ChatRequest, says: str) -> None:
        self._inner = inner
        self._start = len(LocalProvider.prompt(make(chat_format), request)[0])
        self._says = [*BYTES.encode(says, bos=False, specials=True), BYTES.special_ids["<|eot_id|>"]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def step(self, plan: Plan) -> StepResult:
        result = self._inner.step(plan)
        choices = []
        for span in plan.spans:
            made = []
            for draw in span.draws:
                row = np.zeros(CFG.vocab_size, np.float32)
                at = draw.position - self._start
                row[self._says[min(at, len(self._says) - 1)]] = 50.0
                made.append(choose(row, replace(draw, params=SamplingParams(temperature=0.0))))
            choices.append(tuple(made))
        return replace(result, choices=tuple(choices))


def scripted(name: str, says: str, **choices: Any) -> list[Event]:
    chat_format = FORMATS[name][0]
    request = asked(**choices)
    backend = Scripted(make_backend("reference", CFG, LEAVES), chat_format, request, says)
    return list(make(chat_format, backend).chat(request))


def test_a_call_that_an_answer_begins_with_is_held_to_the_schema() -> None:
    """The model would write a text where the schema has a number."""
    says = '{"name": "f", "parameters": {"a": "many"}}'
    events = scripted("llama3.1", says, tools=[SIMPLE], max_tokens=60)
    assert [type(call.arguments.get("a", 0)) for call in calls_of(events)] in ([int], []), text_of(events)
    assert check_pieces(events) == 1 and text_of(events) == ""


@pytest.mark.parametrize(
    "says",
    ['{"name": "Alice", "age": 3}', "Sure: nothing.", '{"name": "f", "parameters', "", ' {"name"', '[f(', "<|python_tag|>print(1)"],
)  # fmt: skip
def test_an_answer_that_is_no_call_is_as_free_as_without_tools(says: str) -> None:
    free = scripted("llama3.1", says)
    events = scripted("llama3.1", says, tools=[SIMPLE])
    if "python_tag" in says:
        assert [call.name for call in calls_of(events)] == ["code_interpreter"]
    else:
        assert text_of(events) == text_of(free) == says and not calls_of(events)


def test_calls_in_other_words_are_read_as_ever() -> None:
    for says in ('{"type": "function", "name": "f", "parameters": {"a": "x"}}', 'Well.\n{"name": "f", "parameters": {"a": "x"}}'):
        events = scripted("llama3.1", says, tools=[SIMPLE])
        assert [call.arguments for call in calls_of(events)] == [{"a": "x"}]
        assert check_pieces(events) == 0


def test_one_call_is_enough_where_calls_are_not_parallel() -> None:
    call = '{"type": "function", "name": "f", "parameters": {"a": "x"}}'
    several = scripted("llama4", f"{call}\n{call}\n{call}", tools=[SIMPLE])
    assert len(calls_of(several)) == 3
    for says in (f"{call}\n{call}", f"[{call}, {call}]"):
        events = scripted("llama4", says, tools=[SIMPLE], tool_choice=ToolChoice(parallel=False))
        assert len(calls_of(events)) == 1 and reason(events) is StopReason.END
