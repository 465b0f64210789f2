"""Ollama's own client against a server: chats, generations, lines, options, lists of models, what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import ollama
import pytest

from herd.errors import Busy, ContextExceeded, ProviderError
from herd.providers.base import Called, Calling, ChatRequest, CompletionRequest, Failed, Finished, Text, Usage
from herd.sampling.constraint import ConstraintKind
from herd.sampling.stop import StopReason
from herd.text.messages import Image, Role, ToolCall
from server.fake_pool import FakePool, FakeService, Refuse, Wait, words

if TYPE_CHECKING:
    from server.conftest import Running

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}}
CALL = ToolCall("call_1", "weather", {"city": "Oslo"})


CLIENTS = ExitStack()


@pytest.fixture(autouse=True)
def closed_clients() -> Iterator[None]:
    """Clients that a test made are closed with it."""
    with CLIENTS:
        yield


@pytest.fixture
def client(server: Running) -> ollama.Client:
    return client_of(server)


def client_of(server: Running) -> ollama.Client:
    return CLIENTS.enter_context(ollama.Client(host=server.url))


def asked(server: Running) -> ChatRequest:
    found = server.pool.only.asked[-1]
    assert isinstance(found, ChatRequest)
    return found


def post(server: Running, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json={"model": "fake", **body})


def test_a_chat_is_answered(server: Running, client: ollama.Client) -> None:
    answer = client.chat("fake", HI)
    assert answer.message.role == "assistant" and answer.message.content == "Hello there, world." and answer.model == "fake"
    assert answer.done and answer.done_reason == "stop" and answer.prompt_eval_count == 7 and answer.eval_count == 3
    assert answer.total_duration is not None and answer.total_duration > answer.load_duration >= 0  # type: ignore[operator]
    assert [(m.role, m.text) for m in asked(server).messages] == [(Role.USER, "Hi")]
    assert server.pool.used == 0 and server.pool.only.open == 0


def test_a_chat_is_streamed_by_lines(client: ollama.Client) -> None:
    parts = list(client.chat("fake", HI, stream=True))
    assert [part.message.content for part in parts] == ["Hello", " there,", " world.", ""]
    assert [part.done for part in parts] == [False, False, False, True] and parts[-1].eval_count == 3


def test_without_a_word_about_it_an_answer_is_streamed(server: Running) -> None:
    response = post(server, "/api/chat", messages=HI)
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert len(lines) == 4 and lines[0]["message"] == {"role": "assistant", "content": "Hello"}


def test_options_are_honoured(server: Running, client: ollama.Client) -> None:
    options = {"temperature": 0.1, "top_k": 3, "top_p": 0.5, "min_p": 0.05, "seed": 9, "num_predict": 2, "stop": ["X"], "num_ctx": 99999}
    answer = client.chat("fake", HI, options={**options, "repeat_penalty": 1.2, "repeat_last_n": -1, "num_thread": 4})
    assert answer.done_reason == "length"
    request = asked(server)
    drawn = request.sampling
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p, drawn.seed) == (0.1, 3, 0.5, 0.05, 9)
    assert (drawn.repetition_penalty, request.max_tokens, request.stop) == (1.2, 2, ("X",))


def test_without_options_ollamas_own_defaults_hold_but_for_the_publishers_advice(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService(facts_given={"sampling": {"temperature": 0.6}})))
    client_of(server).chat("fake", HI, options={"num_predict": -1, "seed": -1})
    drawn = asked(server).sampling
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.repetition_penalty, drawn.seed) == (0.6, 40, 0.9, 1.0, None)
    assert asked(server).max_tokens is None


def test_a_penalty_with_a_reach_of_zero_is_none(server: Running, client: ollama.Client) -> None:
    client.chat("fake", HI, options={"repeat_penalty": 1.2, "repeat_last_n": 0})
    assert asked(server).sampling.repetition_penalty == 1.0


@pytest.mark.parametrize(
    ("asked_format", "kind", "text"),
    [("json", ConstraintKind.JSON_OBJECT, ""), ({"type": "object"}, ConstraintKind.JSON_SCHEMA, '{"type":"object"}')],
)
def test_formats_hold_the_answer(server: Running, client: ollama.Client, asked_format: Any, kind: ConstraintKind, text: str) -> None:
    client.chat("fake", HI, format=asked_format)
    constraint = asked(server).constraint
    assert constraint is not None and (constraint.kind, constraint.text) == (kind, text)


def test_calls_of_tools_are_told_whole(serve: Callable[..., Running]) -> None:
    script = [Text("See."), Calling(0, "weather", "call_1", "{"), Called(CALL)]
    server = serve(FakePool(FakeService(script=script)))
    for answer in (
        client_of(server).chat("fake", HI, tools=[TOOL]),
        list(client_of(server).chat("fake", HI, tools=[TOOL], stream=True))[1],
    ):
        assert answer.message.tool_calls is not None
        (call,) = answer.message.tool_calls
        assert call.function.name == "weather" and call.function.arguments == {"city": "Oslo"}
    assert [tool.name for tool in asked(server).tools if hasattr(tool, "name")] == ["weather"]


def test_results_of_tools_reach_the_model(server: Running, client: ollama.Client) -> None:
    messages = [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
        {"role": "tool", "content": "rain", "tool_name": "weather"},
    ]
    client.chat("fake", messages)
    _, call, result = asked(server).messages
    assert call.tool_calls == (CALL,) and (result.role, result.text, result.name) == (Role.TOOL, "rain", "weather")


def test_pictures_reach_models_that_see_and_no_others(serve: Callable[..., Running], client: ollama.Client) -> None:
    data = b"not looked at here"
    message = {"role": "user", "content": "What is it?", "images": [data]}
    with pytest.raises(ollama.ResponseError, match="reads text only"):
        client.chat("fake", [message])
    server = serve(FakePool(FakeService(facts_given={"sees_pictures": True})))
    client_of(server).chat("fake", [message])
    picture, text = asked(server).messages[0].parts
    assert isinstance(picture, Image) and picture.source == data and not isinstance(text, Image) and text.text == "What is it?"
    client_of(server).generate("fake", "What is it?", images=[data])
    assert asked(server).messages[0].images[0].source == data
    bad = post(server, "/api/generate", prompt="x", images=["%%%"])
    assert bad.status_code == 400 and "images.0 is not base64" in bad.json()["error"]


def test_log_probabilities_are_told(client: ollama.Client) -> None:
    answer = client.chat("fake", HI, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None and [each.token for each in answer.logprobs] == ["Hello", " there,", " world."]
    assert answer.logprobs[0].logprob == -0.5
    parts = list(client.generate("fake", "Hi", logprobs=True, stream=True))
    assert parts[1].logprobs is not None and parts[1].logprobs[0].token == " there,"


def test_a_prompt_is_a_question_in_the_models_format(server: Running, client: ollama.Client) -> None:
    answer = client.generate("fake", "Why?", system="Be brief.")
    assert answer.response == "Hello there, world." and answer.done_reason == "stop"
    assert [(m.role, m.text) for m in asked(server).messages] == [(Role.SYSTEM, "Be brief."), (Role.USER, "Why?")]
    assert "".join(part.response or "" for part in client.generate("fake", "Why?", stream=True)) == "Hello there, world."


def test_a_raw_prompt_is_continued_as_it_is(server: Running, client: ollama.Client) -> None:
    client.generate("fake", "ab", raw=True)
    request = server.pool.only.asked[-1]
    assert isinstance(request, CompletionRequest) and request.prompt == [97, 98]
    with pytest.raises(ollama.ResponseError, match="system has no place"):
        client.generate("fake", "ab", raw=True, system="x")


def test_what_is_missing_before_a_suffix_is_filled_in(server: Running, client: ollama.Client) -> None:
    client.generate("fake", "def f(", suffix="return 1")
    request = server.pool.only.asked[-1]
    assert isinstance(request, CompletionRequest) and (request.prompt, request.suffix) == ("def f(", "return 1")


def test_an_empty_question_loads_the_model(server: Running, client: ollama.Client) -> None:
    for answer in (client.generate("fake"), client.chat("fake"), client.generate("fake", keep_alive="5m")):
        assert answer.done and answer.done_reason == "load"
    assert server.pool.only.asked == []


@pytest.mark.parametrize("time", [0, "0", "0s", "0m0s", 0.0])
def test_a_model_that_is_to_be_kept_for_no_time_goes_after_the_answer(server: Running, client: ollama.Client, time: Any) -> None:
    assert client.chat("fake", HI, keep_alive=time).done
    assert client.generate("fake", keep_alive=time).done_reason == "unload"
    assert server.pool.put_away_models == ["fake", "fake"] and server.pool.used == 0


def test_any_other_time_changes_nothing_and_what_is_no_time_is_refused(server: Running, client: ollama.Client) -> None:
    for time in ("5m", "1h30m", -1, 300, "-1m"):
        assert client.chat("fake", HI, keep_alive=time).done
    assert server.pool.put_away_models == []
    with pytest.raises(ollama.ResponseError, match="keep_alive"):
        client.chat("fake", HI, keep_alive="soon")


def test_a_name_may_say_latest(server: Running, client: ollama.Client) -> None:
    assert client.chat("fake:latest", HI).model == "fake:latest"
    assert client.show("fake:latest").capabilities == ["completion", "tools", "embedding"]


def test_models_are_listed_and_shown(client: ollama.Client) -> None:
    (model,) = client.list().models
    assert model.model == "fake" and model.digest is not None and len(model.digest) == 64
    (loaded,) = client.ps().models
    assert loaded.model == "fake" and loaded.context_length == 1000
    shown = client.show("fake")
    assert shown.modelinfo is not None and shown.modelinfo["llama.context_length"] == 1000
    with pytest.raises(ollama.ResponseError, match="no model") as caught:
        client.show("fak")
    assert caught.value.status_code == 404 and "did you mean 'fake'" in caught.value.error


def test_a_version_is_told(server: Running) -> None:
    found = httpx.get(f"{server.url}/api/version").json()
    assert found["version"].count(".") == 2 and found["herd"]


def test_texts_become_vectors(server: Running, client: ollama.Client) -> None:
    found = client.embed("fake", ["one", "two"])
    assert [pytest.approx(each) for each in ([0.6, 0.8], [0.6, 0.8])] == found.embeddings and found.prompt_eval_count == 6
    assert client.embed("fake", "one", dimensions=1).embeddings == [[1.0]]
    assert client.embeddings("fake", "one").embedding == pytest.approx([0.6, 0.8])
    assert server.pool.only.embedded[0][0] == ["one", "two"]
    client.embed("fake", "x" * 2000, truncate=True)
    assert server.pool.only.embedded[-1][0] == [[120] * 1000]
    with pytest.raises(ollama.ResponseError, match="vectors have 2"):
        client.embed("fake", "one", dimensions=3)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/chat", {"messages": HI, "template": "{{ .Prompt }}"}, "template is not honoured here"),
        ("/api/chat", {"messages": HI, "think": True}, "does not support thinking"),
        ("/api/chat", {"messages": HI, "options": {"mirostat": 2}}, "options.mirostat is wrong"),
        ("/api/chat", {"messages": HI, "options": {"tempreature": 1}}, "did you mean 'temperature'"),
        ("/api/chat", {"messages": HI, "options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "options.repeat_last_n is 64"),
        ("/api/chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role is wrong"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "tool_name": "f"}]}, "messages.0.tool_name is only for"),
        ("/api/chat", {"messages": HI, "format": "yaml"}, "format is wrong"),
        ("/api/chat", {"messages": HI, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "a name is up to 128"),
        ("/api/chat", {"messages": HI, "top_logprobs": 3}, "top_logprobs needs logprobs"),
        ("/api/generate", {"prompt": "x", "context": [1, 2]}, "context is not honoured here"),
        ("/api/generate", {"prompt": "x", "width": 10}, "makes no pictures"),
        ("/api/generate", {"prompt": "x", "options": {"num_predict": "5"}}, "options.num_predict is wrong"),
        ("/api/pull", {}, "herd pull"),
        ("/api/push", {}, "not published"),
        ("/api/create", {}, "not made through the server"),
        ("/api/copy", {"source": "a", "destination": "b"}, "not copied"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(server: Running, path: str, body: Any, said: str) -> None:
    response = post(server, path, **body)
    assert response.status_code == 400 and list(response.json()) == ["error"] and said in response.json()["error"]


def test_models_are_not_deleted(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="not deleted"):
        client.delete("fake")


@pytest.mark.parametrize(
    ("error", "status"), [(Busy("Full.", retry_after_s=2), 429), (ContextExceeded("9 tokens; 8 fit."), 400), (ProviderError("gone"), 503)]
)
def test_errors_before_the_first_line_have_their_status(serve: Callable[..., Running], error: Any, status: int) -> None:
    client = client_of(serve(FakePool(FakeService(script=[Refuse(error)]))))
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as caught:
            list(client.chat("fake", HI, stream=stream))  # type: ignore[call-overload]
        assert caught.value.status_code == status


def test_an_error_in_the_middle_is_the_last_line(serve: Callable[..., Running]) -> None:
    client = client_of(serve(FakePool(FakeService(script=[Text("a"), Failed(ProviderError("gone"))]))))
    with pytest.raises(ollama.ResponseError, match="process stopped"):
        list(client.chat("fake", HI, stream=True))
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("fake", HI)
    assert caught.value.status_code == 503


def test_a_stop_text_ends_with_stop(serve: Callable[..., Running]) -> None:
    end = Finished(StopReason.STOP_TEXT, Usage(7, 1, prompt_s=0.5, decode_s=0.25), 1, "X")
    answer = client_of(serve(FakePool(FakeService(script=[Text("a"), end])))).chat("fake", HI)
    assert answer.done_reason == "stop" and answer.prompt_eval_duration == 500_000_000 and answer.eval_duration == 250_000_000


def test_leaving_a_stream_cancels_the_answer(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService(script=[*words("a b"), Wait(60), *words("c")])))
    with httpx.stream("POST", f"{server.url}/api/chat", json={"model": "fake", "messages": HI}) as response:
        next(response.iter_lines())
    for _ in range(200):
        if server.pool.only.cancelled:
            break
        httpx.get(f"{server.url}/health")
    assert server.pool.only.cancelled == 1 and server.pool.only.open == 0 and server.pool.used == 0


def test_pictures_are_base64_in_the_request(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService(facts_given={"sees_pictures": True})))
    encoded = base64.b64encode(b"bytes").decode()
    assert post(server, "/api/chat", messages=[{"role": "user", "images": [encoded]}], stream=False).status_code == 200
    assert asked(server).messages[0].images[0].source == b"bytes"
