"""Anthropic's own client against a server: messages, tools, events, errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import pytest

from herd.errors import Busy, ContextExceeded, ProviderError
from herd.providers.base import Called, Calling, ChatRequest, Failed, Finished, Text, ToolUse, Usage
from herd.sampling.constraint import ConstraintKind
from herd.sampling.stop import StopReason
from herd.text.messages import Image, Role, ToolCall
from server.fake_pool import FakePool, FakeService, Refuse, Wait, words

if TYPE_CHECKING:
    from server.conftest import Running

ASK: dict[str, Any] = {"model": "fake", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {
    "name": "weather",
    "description": "What the weather is",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PICTURE = {"type": "base64", "media_type": "image/png", "data": "eA=="}
CALL = ToolCall("call_1", "weather", {"city": "Oslo"})
CALLING = [
    *words("Let me see."),
    Calling(0, "weather", "call_1", '{"city"'),
    Calling(0, "weather", "call_1", ': "Oslo"}'),
    Called(CALL),
]


@pytest.fixture
def client(server: Running) -> Iterator[anthropic.Anthropic]:
    with client_of(server) as made:
        yield made


def client_of(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)


def asked(server: Running) -> ChatRequest:
    found = server.pool.only.asked[-1]
    assert isinstance(found, ChatRequest)
    return found


def test_an_answer_is_a_message_with_a_block_of_text(server: Running, client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        **ASK,
        system="Be brief.",
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        extra_body={"temperature": 0.5, "top_k": 7, "top_p": 0.9},
    )
    assert message.type == "message" and message.role == "assistant" and message.model == "fake" and message.id.startswith("msg_")
    assert [block.text for block in message.content if block.type == "text"] == ["Hello there, world."]
    assert message.stop_reason == "end_turn" and message.stop_sequence is None
    assert message.usage.input_tokens == 7 and message.usage.output_tokens == 3 and message.usage.cache_read_input_tokens == 0
    request = asked(server)
    assert [(m.role, m.text) for m in request.messages] == [(Role.SYSTEM, "Be brief."), (Role.USER, "Hi")]
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0.5, 7, 0.9)
    assert request.stop == ("END",) and request.max_tokens == 100
    assert server.pool.used == 0 and server.pool.only.open == 0


def test_a_stream_opens_fills_and_closes_its_blocks(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ASK) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [kind for kind in kinds if kind not in ("text", "input_json")] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert final.content[0].type == "text" and final.content[0].text == "Hello there, world."
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == 3 and final.usage.input_tokens == 7


def test_a_ping_follows_the_start_of_a_stream_and_fills_silence(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService(script=[Wait(0.01), *words("a"), Wait(0.3), *words("b")])), ping_s=0.05)
    with httpx.stream("POST", f"{server.url}/v1/messages", json=ASK | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line.startswith("event: ")]
    assert lines[0] == "event: message_start" and lines.count("event: ping") >= 3


@pytest.mark.parametrize(
    ("reason", "count", "stop_text", "told"),
    [
        (StopReason.LENGTH, 100, None, "max_tokens"),
        (StopReason.LENGTH, 60, None, "model_context_window_exceeded"),
        (StopReason.STOP_TEXT, 2, "END", "stop_sequence"),
        (StopReason.END, 2, None, "end_turn"),
    ],
)
def test_the_reason_of_the_end_is_told(
    serve: Callable[..., Running], reason: StopReason, count: int, stop_text: str | None, told: str
) -> None:
    end = Finished(reason, Usage(7, count, cached_tokens=4), 1, stop_text)
    with client_of(serve(FakePool(FakeService(script=[Text("a"), end])))) as client:
        message = client.messages.create(**ASK)
        with client.messages.stream(**ASK) as stream:
            streamed = stream.get_final_message()
    for each in (message, streamed):
        assert (each.stop_reason, each.stop_sequence) == (told, stop_text)
        assert (each.usage.input_tokens, each.usage.cache_read_input_tokens, each.usage.output_tokens) == (3, 4, count)


def test_calls_of_tools_are_blocks_and_their_arguments_are_streamed(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService(script=CALLING)))
    with client_of(server) as client:
        message = client.messages.create(**ASK, tools=[TOOL])  # type: ignore[list-item]
        with client.messages.stream(**ASK, tools=[TOOL]) as stream:  # type: ignore[list-item]
            pieces = [event.partial_json for event in stream if event.type == "input_json"]
            streamed = stream.get_final_message()
    assert "".join(pieces) == '{"city": "Oslo"}' and len(pieces) == 2
    for each in (message, streamed):
        assert each.stop_reason == "tool_use"
        text, call = each.content
        assert text.type == "text" and text.text == "Let me see."
        assert call.type == "tool_use" and (call.id, call.name, call.input) == ("call_1", "weather", {"city": "Oslo"})


def test_a_call_that_comes_whole_is_streamed_too(serve: Callable[..., Running]) -> None:
    script = [Called(CALL), Called(ToolCall("call_2", "weather", {"city": "Bergen"}))]
    with client_of(serve(FakePool(FakeService(script=script)))) as client, client.messages.stream(**ASK) as stream:
        final = stream.get_final_message()
    assert [(each.id, each.input) for each in final.content if each.type == "tool_use"] == [
        ("call_1", {"city": "Oslo"}),
        ("call_2", {"city": "Bergen"}),
    ]


def test_results_of_tools_go_to_the_model_before_the_rest_of_their_turn(server: Running, client: anthropic.Anthropic) -> None:
    turns: list[Any] = [
        {"role": "user", "content": "Weather in Oslo?"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "See."}, {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "There it is."},
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}], "is_error": False},
            ],
        },
    ]
    client.messages.create(model="fake", max_tokens=10, messages=turns, tools=[TOOL])  # type: ignore[list-item]
    request = asked(server)
    assert [(m.role.value, m.text) for m in request.messages] == [
        ("user", "Weather in Oslo?"),
        ("assistant", "See."),
        ("tool", "rain"),
        ("user", "There it is."),
    ]
    assert request.messages[1].tool_calls == (ToolCall("t1", "weather", {}),) and request.messages[2].tool_call_id == "t1"


@pytest.mark.parametrize(
    ("choice", "use", "name", "parallel"),
    [
        ({"type": "auto"}, ToolUse.AUTO, None, True),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolUse.REQUIRED, None, False),
        ({"type": "tool", "name": "weather"}, ToolUse.NAMED, "weather", True),
    ],
)
def test_choices_of_tools_are_honoured(
    server: Running, client: anthropic.Anthropic, choice: Any, use: ToolUse, name: str | None, parallel: bool
) -> None:
    client.messages.create(**ASK, tools=[TOOL], tool_choice=choice)  # type: ignore[list-item]
    found = asked(server).tool_choice
    assert (found.use, found.name, found.parallel) == (use, name, parallel)
    assert [tool.name for tool in asked(server).tools if hasattr(tool, "name")] == ["weather"]


def test_no_tool_is_told_to_the_model_when_none_may_be_called(server: Running, client: anthropic.Anthropic) -> None:
    client.messages.create(**ASK, tools=[TOOL], tool_choice={"type": "none"})  # type: ignore[list-item]
    assert asked(server).tools == ()


def test_a_picture_in_the_message_reaches_a_model_that_sees(serve: Callable[..., Running], client: anthropic.Anthropic) -> None:
    data = base64.b64encode(b"not looked at here").decode()
    source: Any = {"type": "base64", "media_type": "image/png", "data": data}
    messages: Any = [{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]}]
    with pytest.raises(anthropic.BadRequestError, match="reads text only"):
        client.messages.create(model="fake", max_tokens=10, messages=messages)
    server = serve(FakePool(FakeService(facts_given={"sees_pictures": True})))
    with client_of(server) as seeing:
        seeing.messages.create(model="fake", max_tokens=10, messages=messages)
        with pytest.raises(anthropic.BadRequestError, match="at most 64"):
            seeing.messages.create(model="fake", max_tokens=10, messages=[{"role": "user", "content": messages[0]["content"] * 65}])
    picture, text = asked(server).messages[0].parts
    assert isinstance(picture, Image) and picture.source == f"data:image/png;base64,{data}"
    assert not isinstance(text, Image) and text.text == "What is it?"


def test_a_picture_by_address_is_refused_where_no_host_is_allowed(client: anthropic.Anthropic) -> None:
    block: Any = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:1/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match="not fetched"):
        client.messages.create(model="fake", max_tokens=10, messages=[{"role": "user", "content": [block]}])


def test_a_schema_for_the_answer_is_held_to(server: Running, client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    client.messages.create(**ASK, output_config={"format": {"type": "json_schema", "schema": schema}})
    constraint = asked(server).constraint
    assert constraint is not None and constraint.kind is ConstraintKind.JSON_SCHEMA and json.loads(constraint.text) == schema


def test_marks_for_the_cache_change_nothing(server: Running, client: anthropic.Anthropic) -> None:
    mark: Any = {"type": "ephemeral"}
    client.messages.create(
        model="fake",
        max_tokens=10,
        system=[{"type": "text", "text": "One.", "cache_control": mark}, {"type": "text", "text": "Two."}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": mark}]}],
    )
    assert [m.text for m in asked(server).messages] == ["One.\n\nTwo.", "Hi"]


def test_turns_of_one_side_that_follow_each_other_are_one(server: Running, client: anthropic.Anthropic) -> None:
    client.messages.create(model="fake", max_tokens=10, messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert [(m.role, m.text) for m in asked(server).messages] == [(Role.USER, "a\n\nb")]


def test_what_the_publisher_recommends_holds_where_the_request_says_nothing(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService(facts_given={"sampling": {"temperature": 0.6, "top_p": 0.9}})))
    with client_of(server) as client:
        client.messages.create(**ASK, extra_body={"top_p": 0.5})
    assert (asked(server).sampling.temperature, asked(server).sampling.top_p) == (0.6, 0.5)


def test_tokens_are_counted_without_answering(server: Running, client: anthropic.Anthropic) -> None:
    count = client.messages.count_tokens(model="fake", messages=[{"role": "user", "content": "one two three"}], system="four")
    assert count.input_tokens == 3 + 5 + 3 and server.pool.only.asked == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens is not honoured"),
        ({"max_tokens": 0}, "max_tokens is wrong"),
        ({"max_tokens": True}, "max_tokens is wrong"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"container": "x"}, "container is not honoured"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type is wrong"),
        ({"tools": [TOOL, TOOL]}, "names must differ"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "none of the tools"),
        ({"messages": []}, "messages is wrong"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages.0.content.0 is wrong: needs a type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "no message before it"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "last message is the assistant's"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image", "source": PICTURE}]}]}, "of type image"),
        ({"stop_sequences": [""]}, "stop_sequences.0 is wrong"),
        ({"temperature": 2.5}, "temperature is wrong"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: anthropic.Anthropic, change: Any, said: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(
            **{**ASK, **{k: v for k, v in change.items() if k in ASK}}, extra_body={k: v for k, v in change.items() if k not in ASK}
        )
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error" and said in body["error"]["message"]
    assert body["request_id"] == caught.value.response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("error", "raised", "kind"),
    [
        (Busy("The queue is full.", retry_after_s=2), anthropic.RateLimitError, "rate_limit_error"),
        (ContextExceeded("The prompt has 9 tokens; 8 fit."), anthropic.BadRequestError, "invalid_request_error"),
        (ProviderError("gone"), anthropic.InternalServerError, "overloaded_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_event_are_http_errors(
    serve: Callable[..., Running], error: Any, raised: type[anthropic.APIStatusError], kind: str, stream: bool
) -> None:
    with client_of(serve(FakePool(FakeService(script=[Refuse(error)])))) as client, pytest.raises(raised) as caught:
        client.messages.create(**ASK, stream=stream)
    body: Any = caught.value.body
    assert body["error"]["type"] == kind


def test_an_error_in_the_middle_is_the_last_event(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService(script=[Text("a"), Failed(ProviderError("gone"))])))
    with client_of(server) as client:
        with pytest.raises(anthropic.APIStatusError) as caught, client.messages.stream(**ASK) as stream:
            stream.until_done()
        with pytest.raises(anthropic.InternalServerError):
            client.messages.create(**ASK)
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "overloaded_error" and body["request_id"]


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="no model"):
        client.messages.create(**{**ASK, "model": "other"})


def test_models_are_listed_in_anthropics_shape(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(*(FakeService(name) for name in ("a", "b", "c"))))
    with client_of(server) as client:
        page = client.models.list(limit=2)
        assert [model.id for model in page.data] == ["a", "b"] and page.has_more and page.last_id == "b"
        assert [model.id for model in client.models.list(limit=2)] == ["a", "b", "c"]
        model = client.models.retrieve("b")
        assert (model.type, model.display_name, model.max_input_tokens) == ("model", "b", 1000)
        with pytest.raises(anthropic.NotFoundError):
            client.models.retrieve("d")
    plain = httpx.get(f"{server.url}/v1/models").json()
    assert plain["object"] == "list" and [each["id"] for each in plain["data"]] == ["a", "b", "c"]


def test_another_version_of_the_api_is_refused(server: Running) -> None:
    response = httpx.post(f"{server.url}/v1/messages", json=ASK, headers={"anthropic-version": "2031-01-01"})
    assert response.status_code == 400 and "2023-06-01" in response.json()["error"]["message"]


def test_leaving_a_stream_cancels_the_answer(serve: Callable[..., Running]) -> None:
    server = serve(FakePool(FakeService(script=[*words("a b"), Wait(60), *words("c")])))
    with client_of(server) as client, client.messages.stream(**ASK) as stream:
        next(iter(stream.text_stream))
    for _ in range(200):
        if server.pool.only.cancelled:
            break
        import time

        time.sleep(0.01)
    assert server.pool.only.cancelled == 1 and server.pool.only.open == 0 and server.pool.used == 0
