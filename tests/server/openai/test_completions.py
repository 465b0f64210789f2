"""OpenAI's client has texts and ids continued: prompts in every form, echo, log-probabilities, the best of several."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from herd.errors import ContextExceeded
from herd.providers.base import CompletionRequest, Finished, Prompted, Text, TokenLogprob, Usage
from herd.sampling.stop import StopReason
from server.fake_pool import FakePool, FakeService, Refuse, words

if TYPE_CHECKING:
    from server.conftest import Running
    from server.openai.conftest import Connect


def asked(server: Running) -> list[CompletionRequest]:
    return [request for request in server.pool.only.asked if isinstance(request, CompletionRequest)]


def told(token: int, text: str, logprob: float, other: str = "?") -> TokenLogprob:
    return TokenLogprob(token, text.encode(), logprob, ((token, logprob), (999, -9.0)), (text.encode(), other.encode()))


def test_a_text_is_continued(server: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="Say", stop=["x"], seed=3, suffix="end", temperature=0.25)
    (choice,) = answer.choices
    assert choice.text == "Hello there, world." and choice.finish_reason == "stop" and choice.logprobs is None
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-") and answer.system_fingerprint == "fake-1"
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    (request,) = asked(server)
    assert (request.prompt, request.suffix, request.max_tokens, tuple(request.stop)) == ("Say", "end", 16, ("x",))
    assert (request.sampling.seed, request.sampling.temperature, request.sampling.top_p) == (3, 0.25, 1.0)


@pytest.mark.parametrize(
    ("prompt", "separate"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]]), ([""], [""])],
)
def test_prompts_are_texts_or_ids_one_or_many(server: Running, client: openai.OpenAI, prompt: Any, separate: list[Any]) -> None:
    answer = client.completions.create(model="fake", prompt=prompt, n=2)
    assert [request.prompt for request in asked(server)] == [each for each in separate for _ in range(2)]
    assert [request.choice_index for request in asked(server)] == list(range(2 * len(separate)))
    assert [choice.index for choice in answer.choices] == list(range(2 * len(separate)))
    assert answer.usage is not None and answer.usage.prompt_tokens == 7 * len(separate), "each prompt counts once"


def test_what_measures_models_gets_echo_and_log_probabilities_of_ids(serve: Callable[..., Running], connect: Connect) -> None:
    """As lm-eval asks: the prompt's own log-probabilities, its first token without one, and one token more."""
    prompt = (TokenLogprob(72, b"H", math.nan), told(105, "i", -0.25), told(33, "!", -1.5, "i"))
    end = Finished(StopReason.LENGTH, Usage(3, 1), 1)
    server = serve(FakePool(FakeService(script=[Prompted(prompt), Text("?", (told(63, "?", -0.125),)), end])))
    answer = connect(server).completions.create(model="fake", prompt=[72, 105, 33], echo=True, logprobs=1, max_tokens=1, temperature=0)
    (request,) = asked(server)
    assert request.score_prompt and request.sampling.logprobs == 1 and request.prompt == [72, 105, 33]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and answer.choices[0].text == "Hi!?"
    assert logprobs.tokens == ["H", "i", "!", "?"] and logprobs.text_offset == [0, 1, 2, 3]
    assert logprobs.token_logprobs == [None, -0.25, -1.5, -0.125]
    assert logprobs.top_logprobs == [None, {"i": -0.25}, {"!": -1.5}, {"?": -0.125}]


def test_an_echo_alone_costs_no_scores(server: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt=["Say: ", "Do: "], echo=True)
    assert [choice.text for choice in answer.choices] == ["Say: Hello there, world.", "Do: Hello there, world."]
    assert not any(request.score_prompt for request in asked(server))


def test_alternatives_are_told_besides_the_token_that_came(serve: Callable[..., Running], connect: Connect) -> None:
    unlikely = TokenLogprob(5, b"z", -4.0, ((1, -0.1), (2, -2.0)), (b"a", b"b"))
    half = TokenLogprob(6, b"\xf0\x9f", -math.inf, ((6, -math.inf), (7, -1.0)), (b"\xf0\x9f", b"b"))
    server = serve(FakePool(FakeService(script=[Text("z", (unlikely, half))])))
    logprobs = connect(server).completions.create(model="fake", prompt="x", logprobs=2).choices[0].logprobs
    assert logprobs is not None and logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"a": -0.1, "b": -2.0, "z": -4.0}
    assert logprobs.tokens == ["z", "bytes:\\xf0\\x9f"] and logprobs.token_logprobs == [-4.0, -9999.0], "JSON has no infinity"


def test_the_best_of_several_are_those_with_the_likeliest_tokens(serve: Callable[..., Running], connect: Connect) -> None:
    means = [-3.0, -1.0, -2.0, -0.5]

    def script(request: CompletionRequest) -> list[Any]:
        index = request.choice_index
        return [Text(str(index), (told(1, str(index), means[index]),))]

    server = serve(FakePool(FakeService(script=script)))
    answer = connect(server).completions.create(model="fake", prompt="x", best_of=4, n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "3"), (1, "1")]
    assert answer.usage is not None and answer.usage.completion_tokens == 4, "all that was made counts"


def test_a_stream_echoes_first_and_ends_with_a_reason(server: Running, client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(model="fake", prompt="Say: ", echo=True, logprobs=0, stream=True, stream_options={"include_usage": True})
    )
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["Say: Hello", " there,", " world.", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    assert {chunk.object for chunk in chunks} == {"text_completion"}


def test_a_stream_of_several_prompts_tells_which_is_which(server: Running, client: openai.OpenAI) -> None:
    texts: dict[int, str] = {}
    for chunk in client.completions.create(model="fake", prompt=["a", "b"], n=2, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == dict.fromkeys(range(4), "Hello there, world.")


def test_a_stream_of_nothing_still_has_its_echo_and_its_end(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService(script=[Finished(StopReason.LENGTH, Usage(7, 0), 1)])))
    body = {"model": "fake", "prompt": "Hi", "echo": True, "max_tokens": 0, "stream": True}
    events = [line.removeprefix("data: ") for line in httpx.post(f"{server.url}/v1/completions", json=body).text.splitlines() if line]
    assert events[-1] == "[DONE]"
    first, last = (json.loads(line)["choices"][0] for line in events[:-1])
    assert first["text"] == "Hi" and last["finish_reason"] == "length"


def test_fields_of_measurements_reach_the_model(server: Running, client: openai.OpenAI) -> None:
    client.completions.create(model="fake", prompt="x", max_tokens=0, extra_body={"ignore_eos": True, "stop_token_ids": [5, 6]})
    (request,) = asked(server)
    assert request.max_tokens == 0 and request.ignore_end and list(request.stop_ids) == [5, 6]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": [[]]}, "prompt.0", "at least 1"),
        ({"prompt": None}, "prompt", "string"),
        ({"prompt": {}}, "prompt", "string"),
        ({"prompt": [1, "a"]}, "prompt.1", "integer"),
        ({"prompt": ["a", 1]}, "prompt.1", "string"),
        ({"prompt": [True]}, "prompt.0", "string"),
        ({"prompt": [-1]}, "prompt.0", "greater"),
        ({"prompt": [1000]}, "prompt", "0 to 999"),
        ({"prompt": [1.5]}, "prompt.0", "string"),
        ({"best_of": 1, "n": 2}, "best_of", "less"),
        ({"best_of": 2, "stream": True}, "best_of", "streamed"),
        ({"prompt": ["x"] * 2049}, "prompt", "2048"),
        ({"prompt": ["x"] * 100, "n": 100}, "prompt", "2048"),
        ({"echo": True, "suffix": "x"}, "echo", "suffix"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"max_tokens": -1}, "max_tokens", "greater"),
        ({"suffix": ""}, "suffix", "at least 1"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0", "greater"),
        ({"messages": []}, "messages", "not a field"),
    ],
)
def test_completions_that_make_no_sense_are_refused_by_name(lasting: openai.OpenAI, fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        lasting.completions.create(model="fake", prompt="x", extra_body=fields)
    assert caught.value.param == param and said in caught.value.message


def test_a_prompt_that_is_too_long_names_the_prompt(serve: Callable[..., Running], connect: Connect) -> None:
    error = ContextExceeded("The prompt has 9 tokens; the context is 8.")

    def script(request: CompletionRequest) -> list[Any]:
        return [Refuse(error)] if request.prompt == "long" else words("fine")

    server = serve(FakePool(FakeService(script=script)))
    with pytest.raises(openai.BadRequestError) as caught:
        connect(server).completions.create(model="fake", prompt=["short", "long"])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    assert server.pool.only.open == 0 and server.pool.used == 0, "the one that was accepted is left as well"
