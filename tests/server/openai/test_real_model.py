"""OpenAI's client in front of a real engine process. The model's weights are random: what an answer has to be, it is by no luck."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pydantic
import pytest
from tokenizers import pre_tokenizers

from server.openai.real import CONTEXT, SPECIALS, engines_behind, write_model

HI: list[Any] = [{"role": "user", "content": "Hi"}]
FORMATS = {"three": "llama3.1", "three-two": "llama3.2", "four": "llama4", "guard": "guard3"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = write_model(tmp_path_factory.mktemp("model") / "tiny")
    with engines_behind(folder, FORMATS) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "three", "messages": HI, "max_tokens": 24, "seed": 1, **fields})


def test_an_answer_and_its_pieces_are_the_same(client: openai.OpenAI) -> None:
    whole = chat(client, logprobs=True, top_logprobs=2)
    pieces = list(chat(client, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == whole.choices[0].message.content
    told = [entry for piece in pieces[:-1] if piece.choices[0].logprobs for entry in piece.choices[0].logprobs.content]
    assert told == whole.choices[0].logprobs.content and len(told) == whole.usage.completion_tokens
    assert pieces[-1].usage.total_tokens == whole.usage.total_tokens and whole.system_fingerprint.startswith("cpu/")
    data = b"".join(bytes(entry.bytes) for entry in told)
    assert data.startswith((whole.choices[0].message.content or "").encode("utf-8").split("\ufffd".encode())[0])
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in told)


def test_a_seed_repeats_and_choices_differ(client: openai.OpenAI) -> None:
    first, again = (chat(client, n=3, temperature=1.5, seed=7) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    drawn = chat(client, seed=None, temperature=1.5)
    assert chat(client, seed=drawn.model_extra["seed"], temperature=1.5).choices[0].message.content == drawn.choices[0].message.content


def test_a_prompt_that_was_seen_is_not_computed_again(client: openai.OpenAI) -> None:
    message = [{"role": "user", "content": "An unheard-of beginning. " * 20}]
    chat(client, messages=message)
    usage = chat(client, messages=message).usage
    assert usage.prompt_tokens_details.cached_tokens >= usage.prompt_tokens - 64


def test_names_of_control_tokens_in_texts_are_texts(client: openai.OpenAI) -> None:
    plain, odd = (chat(client, messages=[{"role": "user", "content": text}]).usage.prompt_tokens for text in ("x" * 10, "<|eot_id|>"))
    assert plain == odd, "ten bytes, ten tokens"


class Animal(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=5)
    legs: int = pydantic.Field(ge=0, le=9)


def test_random_weights_fill_in_a_schema(client: openai.OpenAI) -> None:
    for seed in range(4):
        answer = client.chat.completions.parse(
            model="three", messages=HI, response_format=Animal, max_tokens=300, seed=seed, temperature=0.5
        )
        if answer.choices[0].finish_reason == "stop":
            animal = answer.choices[0].message.parsed
            assert animal is not None and len(animal.name) <= 5 and 0 <= animal.legs <= 9
            return
    raise AssertionError("no answer came to its end")


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"guided_choice": ["yes.", "no?"]}, {"yes.", "no?"}),
        ({"structured_outputs": {"regex": "[ab]{2}"}}, {"aa", "ab", "ba", "bb"}),
        ({"response_format": {"type": "grammar", "grammar": 'start: "left" | "right"'}}, {"left", "right"}),
    ],
)
def test_random_weights_keep_to_what_is_allowed(client: openai.OpenAI, fields: dict[str, Any], allowed: set[str]) -> None:
    for seed in range(3):
        choice = chat(client, extra_body=fields, seed=seed, temperature=1.5).choices[0]
        assert choice.message.content in allowed and choice.finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"structured_outputs": {"json": {"type": "nothing"}}}, "structured_outputs.json"),
        ({"response_format": {"type": "grammar", "grammar": "start: nowhere"}}, "response_format"),
    ],
)
def test_what_no_answer_can_be_held_to_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body=fields)
    assert caught.value.param == param


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [tool("weather", city={"enum": ["Oslo", "Rome"]}), tool("dice", sides={"type": "integer", "minimum": 1, "maximum": 99})]


@pytest.mark.parametrize("model", ["three", "three-two", "four"])
def test_random_weights_call_when_they_have_to(client: openai.OpenAI, model: str) -> None:
    choice = chat(client, model=model, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=400).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name in ("weather", "dice") and call.id
    assert set(json.loads(call.function.arguments)) == ({"city"} if call.function.name == "weather" else {"sides"})
    named = {"type": "function", "function": {"name": "dice"}}
    call = chat(client, model=model, tools=TOOLS, tool_choice=named, max_tokens=400).choices[0].message.tool_calls[0]
    assert call.function.name == "dice" and 1 <= json.loads(call.function.arguments)["sides"] <= 99


def test_the_pieces_of_a_call_are_the_call(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400}
    (whole,) = chat(client, **asked).choices[0].message.tool_calls
    pieces = [call for chunk in chat(client, **asked, stream=True) for call in chunk.choices[0].delta.tool_calls or ()]
    assert {piece.index for piece in pieces} == {0} and [piece.id for piece in pieces if piece.id] == [pieces[0].id]
    assert pieces[0].function.name == whole.function.name and all(piece.function.name is None for piece in pieces[1:])
    said = "".join(piece.function.arguments for piece in pieces)
    assert json.loads(said) == json.loads(whole.function.arguments)


def test_measurements_get_the_probabilities_of_their_own_ids(client: openai.OpenAI) -> None:
    ids = [40, 41, 42, 43, 44]

    def scores(prompt: list[int], max_tokens: int) -> Any:
        asked: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": max_tokens, "temperature": 0}
        return client.completions.create(model="three", prompt=prompt, **asked).choices[0].logprobs

    told = scores(ids, 1)
    assert len(told.tokens) == 6 and told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert all(max(top.values()) >= score for top, score in zip(told.top_logprobs[1:], told.token_logprobs[1:], strict=True))
    assert max(told.top_logprobs[-1].values()) == told.token_logprobs[-1], "what is taken greedily is the likeliest"
    bare = scores(ids, 0)
    assert bare.token_logprobs == told.token_logprobs[:5], "the same bits, whatever follows"
    total = sum(math.exp(each) for each in scores([*ids, 45], 0).token_logprobs[1:])
    assert 0 < total < 5


def test_texts_as_prompts_begin_as_the_model_was_trained(client: openai.OpenAI) -> None:
    one = client.completions.create(model="three", prompt="Hi", max_tokens=2, seed=1, echo=True, logprobs=0)
    assert one.choices[0].logprobs is not None and one.choices[0].logprobs.tokens is not None and one.usage is not None
    assert len(one.choices[0].logprobs.tokens) == one.usage.prompt_tokens + one.usage.completion_tokens
    assert one.choices[0].text.startswith("Hi")


def test_the_context_is_a_limit_that_both_numbers_tell(client: openai.OpenAI) -> None:
    fits = client.completions.create(model="three", prompt=[40] * (CONTEXT - 1), max_tokens=100, extra_body={"ignore_eos": True})
    assert fits.usage is not None and fits.usage.completion_tokens == 1 and fits.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="three", prompt=[40] * (CONTEXT + 1))
    problem = caught.value
    assert problem.code == "context_length_exceeded" and problem.param == "prompt"
    assert str(CONTEXT) in problem.message and str(CONTEXT + 1) in problem.message
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "x" * 5000}])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"


def test_measurements_of_speed_get_answers_of_their_length(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=120, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 120 and answer.choices[0].finish_reason == "length"


def test_embeddings_have_length_one_and_tell_texts_apart(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="three", input=["one text", "one text", "another"])
    vectors = np.asarray([each.embedding for each in answer.data])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[1]) and not np.allclose(vectors[0], vectors[2])


def test_models_are_described_once_they_are_loaded(client: openai.OpenAI) -> None:
    details = client.models.retrieve("three").model_extra
    assert details is not None and details["details"]["chat_format"] == "llama3.1" and details["limits"]["context"] == CONTEXT
    assert {model.id for model in client.models.list()} == set(FORMATS)


def test_pictures_are_refused_by_a_model_that_reads(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}])
    assert caught.value.param == "messages"


def test_a_stream_that_is_left_frees_its_place(client: openai.OpenAI) -> None:
    for _ in range(20):
        stream = chat(client, max_tokens=3000, stream=True, extra_body={"ignore_eos": True})
        next(stream)
        stream.close()
    assert chat(client).usage.completion_tokens > 0


FUNCTIONS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}
    for name in ("clock", "calendar")
]


def test_calls_in_parallel_are_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    counts = set()
    fields = {"model": "four", "tools": FUNCTIONS, "tool_choice": "required", "max_tokens": 300, "temperature": 1}
    goes_on = {str(len(pre_tokenizers.ByteLevel.alphabet()) + SPECIALS.index("<|eot|>")): -4}  # the end becomes less likely
    for seed in range(8):
        asked = {**fields, "seed": seed, "logit_bias": goes_on}
        (whole,) = chat(client, **asked).choices
        told: dict[int, list[str]] = {}
        ends = []
        for piece in chat(client, **asked, stream=True):
            for choice in piece.choices:
                ends += [choice.finish_reason] if choice.finish_reason else []
                for call in choice.delta.tool_calls or []:
                    parts = told.setdefault(call.index, ["", "", ""])
                    parts[0] += call.id or ""
                    parts[1] += call.function.name or ""
                    parts[2] += call.function.arguments or ""
        calls = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or []]
        assert [(name, arguments) for _, name, arguments in told.values()] == calls and ends == [whole.finish_reason]
        assert whole.finish_reason == "length" or all(json.loads(arguments) == {} for _, arguments in calls)
        assert sorted(told) == list(range(len(calls))) and len({each[0] for each in told.values()}) == len(calls)
        assert len({call.id for call in whole.message.tool_calls or []}) == len(calls)
        assert {name for name, _ in calls} <= {"clock", "calendar"}
        counts.add(len(calls))
        (single,) = chat(client, **asked, parallel_tool_calls=False).choices
        assert len(single.message.tool_calls or []) <= 1
    assert max(counts) > 1, "the format has several calls in an answer"


@pytest.mark.parametrize("stop", [None, ['"']], ids=["to the end", "with stop"])
@pytest.mark.parametrize("is_held", [False, True], ids=["free", "held to a schema"])
@pytest.mark.parametrize("choice", [None, "auto", "required"], ids=["without tools", "tools", "tools required"])
def test_whatever_goes_together_is_the_same_streamed_and_whole(
    client: openai.OpenAI, choice: str | None, is_held: bool, stop: list[str] | None
) -> None:
    asked: dict[str, Any] = {"n": 2, "logprobs": True, "top_logprobs": 2, "temperature": 1, "max_tokens": 40, "stop": stop}
    if choice is not None:
        asked |= {"tools": FUNCTIONS, "tool_choice": choice}
    if is_held:
        schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
        asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    whole = chat(client, **asked)
    *pieces, last = chat(client, **asked, stream=True, stream_options={"include_usage": True})
    for told in whole.choices:
        own = [each for piece in pieces for each in piece.choices if each.index == told.index]
        assert "".join(each.delta.content or "" for each in own) == (told.message.content or "")
        calls = [call for each in own for call in each.delta.tool_calls or []]
        assert "".join(call.function.arguments or "" for call in calls) == "".join(
            call.function.arguments for call in told.message.tool_calls or []
        )
        assert [each.finish_reason for each in own if each.finish_reason] == [told.finish_reason]
        assert [entry for each in own if each.logprobs for entry in each.logprobs.content] == told.logprobs.content
    assert last.usage.completion_tokens == whole.usage.completion_tokens and last.usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_call_that_is_cut_off_is_told_as_far_as_it_came(client: openai.OpenAI) -> None:
    seen = set()
    for length in range(1, 60, 4):
        asked = {"tools": FUNCTIONS, "tool_choice": "required", "max_tokens": length}
        (whole,) = chat(client, **asked).choices
        pieces = [
            call for piece in chat(client, **asked, stream=True) for choice in piece.choices for call in choice.delta.tool_calls or []
        ]
        told = "".join(piece.function.name or "" for piece in pieces), "".join(piece.function.arguments or "" for piece in pieces)
        calls = whole.message.tool_calls or []
        assert [(call.function.name, call.function.arguments) for call in calls] == ([told] if pieces else [])
        seen.add((whole.finish_reason, bool(calls)))
    assert {("length", False), ("length", True), ("tool_calls", True)} <= seen


def test_what_a_model_cannot_do_is_refused_by_the_field_that_asks_for_it(client: openai.OpenAI) -> None:
    for ask, param, said in (
        (lambda: chat(client, model="guard", tools=FUNCTIONS), "tools", "defines none"),
        (lambda: client.completions.create(model="three", prompt="def f():", suffix="return"), "suffix", "not taught to fill in"),
        (lambda: client.moderations.create(model="three", input="x"), "model", "three is no guard"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert caught.value.param == param and said in caught.value.message
