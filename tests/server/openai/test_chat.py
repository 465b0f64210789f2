"""OpenAI's client asks for chats: answers, choices, log-probabilities, what reaches the model, and what is refused."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from herd.errors import Busy, ContextExceeded, ProviderError, UsageError
from herd.providers.base import ChatRequest, Failed, Finished, Text, TokenLogprob, Usage
from herd.sampling.stop import StopReason
from herd.text.messages import Image, Role
from server.fake_pool import FakePool, FakeService, Refuse, words
from server.raw import connection, until
from server.test_fetching import PICTURE, send, site

if TYPE_CHECKING:
    from server.conftest import Running
    from server.openai.conftest import Connect

ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
PIXEL = "data:image/png;base64,AAAA"


def asked(server: Running, index: int = -1) -> ChatRequest:
    found = server.pool.only.asked[index]
    assert isinstance(found, ChatRequest)
    return found


def refusal(client: openai.OpenAI, **fields: Any) -> openai.BadRequestError:
    extra = {name: fields.pop(name) for name in list(fields) if name not in openai_fields()}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASK, **fields}, extra_body=extra)
    return caught.value


def openai_fields() -> set[str]:
    return set(inspect.signature(openai.resources.chat.Completions.create).parameters)


def test_an_answer_has_all_that_clients_look_for(server: Running, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK)
    (choice,) = answer.choices
    assert choice.message.content == "Hello there, world." and choice.message.role == "assistant" and choice.message.refusal is None
    assert choice.finish_reason == "stop" and choice.index == 0 and choice.logprobs is None and choice.message.tool_calls is None
    assert answer.object == "chat.completion" and answer.model == "fake" and answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint == "fake-1" and answer.service_tier == "default" and answer.created > 1_700_000_000
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        7,
        3,
        10,
    )
    assert answer.usage.prompt_tokens_details is not None and answer.usage.prompt_tokens_details.cached_tokens == 0


def test_every_field_reaches_the_model(server: Running, client: openai.OpenAI) -> None:
    client.chat.completions.create(
        **ASK,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        logit_bias={"5": -100, "7": 3},
        seed=11,
        stop=["END", "STOP"],
        max_completion_tokens=9,
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "chat_template_kwargs": {"date_string": "1 May 2025"},
        },
    )
    request = asked(server)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.5, 0.9, 0.1, -0.2)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty, sampling.seed) == (40, 0.05, 1.1, 11)
    assert sampling.logit_bias == {5: -100.0, 7: 3.0} and sampling.logprobs == 0
    assert tuple(request.stop) == ("END", "STOP") and request.max_tokens == 9 and request.ignore_end and request.date == "1 May 2025"


def test_what_is_not_said_is_what_the_model_recommends(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(facts_given={"sampling": {"temperature": 0.6, "top_p": 0.9}})))
    connect(server).chat.completions.create(**ASK, top_p=0.5)
    assert (asked(server).sampling.temperature, asked(server).sampling.top_p) == (0.6, 0.5)


def test_null_is_as_good_as_absent(server: Running, client: openai.OpenAI) -> None:
    names = ("temperature", "top_p", "n", "stop", "seed", "logit_bias", "max_tokens", "logprobs", "top_logprobs", "tools", "tool_choice")
    client.chat.completions.create(**ASK, **dict.fromkeys((*names, "response_format", "store", "metadata", "audio", "functions")))
    assert asked(server).sampling.temperature == 1.0 and asked(server).max_tokens is None


def test_several_answers_share_a_seed_and_differ_in_their_index(server: Running, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    requests = [asked(server, index) for index in range(3)]
    assert [request.choice_index for request in requests] == [0, 1, 2]
    (seed,) = {request.sampling.seed for request in requests}
    assert seed is not None and answer.model_extra == {"seed": seed}
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 9), "a prompt counts once"
    assert server.pool.only.open == 0 and server.pool.used == 0


def test_seeds_that_are_drawn_differ_and_fit_into_javascripts_numbers(server: Running, client: openai.OpenAI) -> None:
    for _ in range(3):
        client.chat.completions.create(**ASK)
    seeds = {asked(server, index).sampling.seed for index in range(3)}
    assert len(seeds) == 3 and all(seed is not None and 0 <= seed < 2**53 for seed in seeds)


def test_log_probabilities_tell_tokens_bytes_and_alternatives(serve: Callable[..., Running], connect: Connect) -> None:
    euro = TokenLogprob(9, b"\xe2\x82", -0.25, ((9, -0.25), (3, -2.0)), (b"\xe2\x82", b"e"))
    script = [
        Text("A", (TokenLogprob(1, b"A", -0.5, ((1, -0.5), (2, -1.0)), (b"A", b"B")),)),
        Text("\u20ac", (euro, TokenLogprob(8, b"\xac", 0.0))),
    ]
    server = serve(FakePool(FakeService(script=script)))
    answer = connect(server).chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
    assert asked(server).sampling.logprobs == 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    first, second, third = logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("A", -0.5, [65])
    assert [(top.token, top.logprob, top.bytes) for top in first.top_logprobs] == [("A", -0.5, [65]), ("B", -1.0, [66])]
    assert second.token == "bytes:\\xe2\\x82" and second.bytes == [0xE2, 0x82] and second.top_logprobs[1].token == "e"
    assert third.bytes == [0xAC] and third.top_logprobs == []


def test_log_probabilities_without_alternatives_have_none(server: Running, client: openai.OpenAI) -> None:
    logprobs = client.chat.completions.create(**ASK, logprobs=True).choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [entry.token for entry in logprobs.content] == ["Hello", " there,", " world."]
    assert all(entry.top_logprobs == [] for entry in logprobs.content)


@pytest.mark.parametrize(("reason", "said"), [(StopReason.END, "stop"), (StopReason.STOP_TEXT, "stop"), (StopReason.LENGTH, "length")])
def test_why_an_answer_ended_is_said(serve: Callable[..., Running], connect: Connect, reason: StopReason, said: str) -> None:
    server = serve(FakePool(FakeService(script=[Text("x"), Finished(reason, Usage(7, 2, cached_tokens=5), 1)])))
    answer = connect(server).chat.completions.create(**ASK)
    assert answer.choices[0].finish_reason == said
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 5


def test_roles_and_parts_become_messages(server: Running, client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="fake",
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " brief."}]},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "Still no."}]},
            {"role": "user", "content": [{"type": "text", "text": "Two?"}]},
        ],
    )
    found = [(message.role, message.text) for message in asked(server).messages]
    assert found == [
        (Role.SYSTEM, "Be brief."),
        (Role.USER, "One?"),
        (Role.ASSISTANT, "No."),
        (Role.ASSISTANT, "Still no."),
        (Role.USER, "Two?"),
    ]


def test_what_the_client_was_told_can_be_sent_back(server: Running, client: openai.OpenAI) -> None:
    said = client.chat.completions.create(**ASK).choices[0].message
    client.chat.completions.create(model="fake", messages=[*ASK["messages"], said.model_dump(), {"role": "user", "content": "And?"}])
    client.chat.completions.create(model="fake", messages=[*ASK["messages"], said, {"role": "user", "content": "And?"}])
    assert asked(server).messages[1].text == "Hello there, world."


def test_pictures_reach_a_model_that_sees(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(facts_given={"sees_pictures": True})))
    content = [{"type": "text", "text": "Both?"}, *({"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},) * 2]
    connect(server).chat.completions.create(model="fake", messages=[{"role": "user", "content": content}])  # type: ignore[typeddict-item]
    parts = asked(server).messages[0].parts
    assert [part.source if isinstance(part, Image) else part.text for part in parts] == ["Both?", PIXEL, PIXEL]


def test_pictures_are_refused_for_a_model_that_reads(client: openai.OpenAI) -> None:
    content = [{"type": "image_url", "image_url": {"url": PIXEL}}]
    problem = refusal(client, messages=[{"role": "user", "content": content}])
    assert problem.param == "messages" and "reads text only" in problem.message


def test_addresses_of_pictures_are_refused_unless_hosts_are_allowed(serve: Callable[..., Running], connect: Connect) -> None:
    server = serve(FakePool(FakeService(facts_given={"sees_pictures": True})))
    content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]
    problem = refusal(connect(server), messages=[{"role": "user", "content": content}])
    assert problem.param == "messages.0.content.1.image_url" and "data: URL" in problem.message


def test_addresses_of_pictures_are_fetched_from_hosts_that_are_allowed(serve: Callable[..., Running], connect: Connect) -> None:
    def picture(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url}}

    with site(b=send(b"another"), gone=send(b"", 404)) as web:
        server = serve(FakePool(FakeService(facts_given={"sees_pictures": True})), image_host=(f"127.0.0.1:{web.port}",))
        content = [picture(web.url()), picture(web.url("/b")), picture(PIXEL), {"type": "text", "text": "?"}, picture(web.url())]
        connect(server).chat.completions.create(model="fake", messages=[{"role": "user", "content": content}])  # type: ignore[list-item]
        sources = [part.source for part in asked(server).messages[0].parts if isinstance(part, Image)]
        assert sources == [PICTURE, b"another", PIXEL, PICTURE]
        assert sorted(path for path, _ in web.asked) == ["/a.png", "/b"], "each once"
        problem = refusal(connect(server), messages=[{"role": "user", "content": [picture(web.url()), picture(web.url("/gone"))]}])
        assert problem.param == "messages.0.content.1.image_url" and "could not be fetched" in problem.message


def test_a_client_that_leaves_while_its_picture_is_fetched_leaves_nothing(serve: Callable[..., Running]) -> None:
    goes_on = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        assert goes_on.wait(30)
        send()(handler)

    with site(slow=slow) as web:
        server = serve(FakePool(FakeService(facts_given={"sees_pictures": True})), image_host=(f"127.0.0.1:{web.port}",))
        content = [{"type": "image_url", "image_url": {"url": web.url("/slow")}}]
        with connection(server.port) as made:
            body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": content}]}).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            made.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            assert until(lambda: bool(web.asked)) and server.house.admission.running == 1
        assert until(lambda: server.house.admission.running == 0 and not server.front.connections)
        goes_on.set()
    assert server.pool.only.asked == [] and server.house.admission.body_bytes == 0


@pytest.mark.parametrize(
    ("messages", "param", "said"),
    [
        ([], "messages", "at least 1 item"),
        ([{"role": "robot", "content": "x"}], "messages.0", "not one of system, developer, user"),
        ([{"content": "x"}], "messages.0", "role"),
        ([{"role": "user", "content": None}], "messages.0.content", "string"),
        ([{"role": "user", "content": []}], "messages.0.content", "at least 1 item"),
        ([{"role": "user"}], "messages.0.content", "missing"),
        ([{"role": "user", "content": 5}], "messages.0.content", "string"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages.0.content.0", "does not hear"),
        ([{"role": "user", "content": [{"type": "file", "file": {}}]}], "messages.0.content.0", "files are not read"),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}], "messages.0.content.0", "text, image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text", "missing"),
        ([{"role": "user", "content": "x", "name": "Ann"}], "messages.0.name", "write the name into the content"),
        ([{"role": "user", "content": "x", "nmae": "Ann"}], "messages.0.nmae", "not a field"),
        ([{"role": "system", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}], "messages.0.content.0", "type"),
        ([{"role": "assistant"}], "messages.0.content", "says nothing"),
        (
            [{"role": "user", "content": "x"}, {"role": "tool", "content": "5", "tool_call_id": "a"}],
            "messages.1.tool_call_id",
            "no message",
        ),
        ([{"role": "tool", "content": "5"}], "messages.0.tool_call_id", "missing"),
        ([{"role": "function", "content": "5", "name": "f"}], "messages.0.name", "no message"),
    ],
)
def test_messages_that_make_no_sense_are_refused_by_name(lasting: openai.OpenAI, messages: list[Any], param: str, said: str) -> None:
    problem = refusal(lasting, messages=messages)
    assert problem.param == param and said in problem.message and problem.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"temperatur": 1}, "temperatur", "did you mean 'temperature'"),
        ({"store": True}, "store", "/v1/responses"),
        ({"audio": {"voice": "x", "format": "mp3"}}, "audio", "does not speak"),
        ({"modalities": ["text", "audio"]}, "modalities", "at most 1"),
        ({"modalities": ["audio"]}, "modalities.0", "text"),
        ({"web_search_options": {}}, "web_search_options", "offer a tool"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "leave it out"),
        ({"verbosity": "low"}, "verbosity", "say in a message"),
        ({"moderation": {"model": "x"}}, "moderation", "/v1/moderations"),
        ({"chat_template": "{{ x }}"}, "chat_template", "--chat-format"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", "not a field"),
        ({"repeat_penalty": 1.1}, "repeat_penalty", "repetition_penalty"),
        ({"cache_salt": "x"}, "cache_salt", "herd keys"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
        ({"logit_bias": {"1000": 1}}, "logit_bias", "0 to 999"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "0 to 999"),
        ({"logit_bias": {"1": 1, "01": 1}}, "logit_bias", "twice"),
        ({"logit_bias": {str(index): 1 for index in range(301)}}, "logit_bias", "300"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "512"),
        ({"metadata": {str(index): "v" for index in range(17)}}, "metadata", "16"),
    ],
)
def test_fields_that_cannot_be_honoured_are_refused_by_name(lasting: openai.OpenAI, fields: dict[str, Any], param: str, said: str) -> None:
    problem = refusal(lasting, **fields)
    assert problem.param == param and said in problem.message


BAD_NUMBERS = [-(2**63), 2**63, 1e308, "1", True, [], {}]
NUMBERS = {
    "temperature": [-0.1, 2.1],
    "top_p": [-0.1, 1.1],
    "min_p": [-0.1, 1.1],
    "top_k": [-2, 2**31, 1.5],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, 101],
    "n": [0, -1, 129, 1.5],
    "seed": [-1, 2**63],
    "max_tokens": [0, -1, 2**31],
    "max_completion_tokens": [0, -1, 2**31],
    "top_logprobs": [-1, 21],
}


def test_numbers_outside_their_bounds_are_refused_by_name(server: Running) -> None:
    with httpx.Client(base_url=server.url) as raw:
        for name, own in NUMBERS.items():
            for value in [*own, *BAD_NUMBERS]:
                reply = raw.post("/v1/chat/completions", json={**ASK, "logprobs": True, name: value})
                error = reply.json()["error"]
                assert reply.status_code == 400 and error["param"].split(".")[0] == name, (name, value, error)
                assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert server.pool.only.asked == []


@pytest.mark.parametrize("stop", [[], "x" * 1001, [""], ["a"] * 5, 7, [7], [None]])
def test_stop_texts_have_bounds(server: Running, stop: Any) -> None:
    reply = httpx.post(f"{server.url}/v1/chat/completions", json={**ASK, "stop": stop})
    assert reply.status_code == (200 if stop == [] else 400)


def test_a_prompt_that_is_too_long_says_both_numbers(serve: Callable[..., Running], connect: Connect) -> None:
    error = ContextExceeded("The prompt has 900 tokens; the context is 512. Shorten the prompt, or start a new conversation.")
    problem = refusal(connect(serve(FakePool(FakeService(script=[Refuse(error)])))))
    assert (
        problem.code == "context_length_exceeded" and problem.param == "messages" and "900" in problem.message and "512" in problem.message
    )


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**ASK, "model": "../../etc/passwd"})
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_errors_are_the_clients_own_exceptions(serve: Callable[..., Running], connect: Connect) -> None:
    def fails_with(error: Any, kind: type[openai.APIStatusError]) -> openai.APIStatusError:
        server = serve(FakePool(FakeService(script=[error])))
        with pytest.raises(kind) as caught:
            connect(server).chat.completions.create(**ASK)
        assert server.pool.only.open == 0 and server.pool.used == 0
        return caught.value

    assert fails_with(Refuse(UsageError("no", param="tools")), openai.BadRequestError).param == "tools"
    busy = fails_with(Refuse(Busy("full", retry_after_s=3)), openai.RateLimitError)
    assert busy.response.headers["retry-after"] == "3"
    died = fails_with(Failed(ProviderError("engine at 0x7f died")), openai.InternalServerError)
    assert died.status_code == 503 and "0x7f" not in died.message and died.response.headers["retry-after"]
    bug = fails_with(RuntimeError("secret"), openai.InternalServerError)
    assert bug.status_code == 500 and "secret" not in bug.message


def test_one_of_several_answers_that_fails_fails_all_and_leaves_nothing_open(serve: Callable[..., Running], connect: Connect) -> None:
    def script(request: ChatRequest) -> list[Any]:
        return [Failed(ProviderError("gone"))] if request.choice_index == 1 else words("Hello " * 50)

    server = serve(FakePool(FakeService(script=script)))
    with pytest.raises(openai.InternalServerError):
        connect(server).chat.completions.create(**ASK, n=3)
    assert server.pool.only.open == 0 and server.pool.used == 0
