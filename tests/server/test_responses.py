"""`/v1/responses` with OpenAI's own client: answers, events, conversations that are kept, background, restarts, other people's answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from herd.errors import Busy, ProviderError
from herd.providers.base import Called, Calling, ChatRequest, Failed, Finished, Text, ToolUse, Usage
from herd.sampling.constraint import ConstraintKind
from herd.sampling.stop import StopReason
from herd.server.keys import Keys, create
from herd.text.messages import Image, Role, ToolCall
from server.fake_pool import FakePool, FakeService, Refuse, Wait, words

if TYPE_CHECKING:
    from server.conftest import Running

Serve = Callable[..., "Running"]
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "What the weather is",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALL = ToolCall("call_1", "weather", {"city": "Oslo"})
CALLING = [
    *words("Let me see."),
    Calling(0, "weather", "call_1", '{"city"'),
    Calling(0, "weather", "call_1", ': "Oslo"}'),
    Called(CALL),
    Called(ToolCall("call_2", "weather", {"city": "Bergen"})),
]


def client_of(server: Running, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def asked(server: Running) -> ChatRequest:
    found = server.pool.only.asked[-1]
    assert isinstance(found, ChatRequest)
    return found


def said(server: Running) -> list[tuple[str, str]]:
    return [(message.role.value, message.text) for message in asked(server).messages]


def test_an_answer_is_a_response_with_a_message(server: Running) -> None:
    with client_of(server) as client:
        response = client.responses.create(
            model="fake", input="Hi", instructions="Be brief.", temperature=0.5, top_p=0.9, max_output_tokens=50, metadata={"a": "b"}
        )
    assert response.id.startswith("resp_") and response.object == "response" and response.status == "completed"
    assert response.output_text == "Hello there, world." and response.model == "fake" and response.metadata == {"a": "b"}
    assert response.usage is not None and (response.usage.input_tokens, response.usage.output_tokens) == (7, 3)
    assert said(server) == [("system", "Be brief."), ("user", "Hi")]
    request = asked(server)
    assert (request.sampling.temperature, request.sampling.top_p, request.max_tokens) == (0.5, 0.9, 50)
    assert server.pool.used == 0 and server.pool.only.open == 0


def test_a_stream_tells_each_step_with_a_number(server: Running) -> None:
    with client_of(server) as client:
        events: list[Any] = list(client.responses.create(model="fake", input="Hi", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(11))
    assert "".join(event.delta for event in events[4:7]) == events[7].text == "Hello there, world."
    assert events[-1].response.output_text == "Hello there, world." and events[0].response.status == "in_progress"
    assert {event.item_id for event in events[3:9]} == {events[2].item.id} == {events[-1].response.output[0].id}


def test_the_clients_own_stream_gathers_the_answer(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=CALLING)))
    with client_of(server) as client, client.responses.stream(model="fake", input="Hi", tools=[TOOL]) as stream:
        final = stream.get_final_response()
    text, first, second = final.output
    assert text.type == "message" and final.output_text == "Let me see."
    assert first.type == "function_call" and (first.call_id, first.name, first.arguments) == ("call_1", "weather", '{"city": "Oslo"}')
    assert second.type == "function_call" and second.call_id == "call_2" and json.loads(second.arguments) == {"city": "Bergen"}


def test_calls_of_functions_are_items_and_their_results_go_on_from_them(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=CALLING)))
    with client_of(server) as client:
        first = client.responses.create(model="fake", input="Weather?", tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
        choice = asked(server).tool_choice
        assert (choice.use, choice.parallel) == (ToolUse.REQUIRED, False)
        results: Any = [
            {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "sun"}]},
        ]
        client.responses.create(model="fake", input=results, previous_response_id=first.id, tools=[TOOL])
    messages = asked(server).messages
    assert [(m.role, m.text) for m in messages] == [
        (Role.USER, "Weather?"),
        (Role.ASSISTANT, "Let me see."),
        (Role.TOOL, "rain"),
        (Role.TOOL, "sun"),
    ]
    assert [call.id for call in messages[1].tool_calls] == ["call_1", "call_2"]


@pytest.mark.parametrize(
    ("choice", "use", "name", "tools"),
    [
        ({"type": "function", "name": "weather"}, ToolUse.NAMED, "weather", 2),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}, ToolUse.REQUIRED, None, 1),
        ("none", ToolUse.NONE, None, 2),
    ],
)
def test_choices_of_tools_are_honoured(server: Running, choice: Any, use: ToolUse, name: str | None, tools: int) -> None:
    with client_of(server) as client:
        client.responses.create(model="fake", input="Hi", tools=[TOOL, {**TOOL, "name": "other"}], tool_choice=choice)
    found = asked(server)
    assert (found.tool_choice.use, found.tool_choice.name, len(found.tools)) == (use, name, tools)


def test_a_conversation_goes_on_from_stored_answers_also_after_a_restart(serve: Serve, tmp_path: Path) -> None:
    server = serve(data_folder=tmp_path)
    with client_of(server) as client:
        first = client.responses.create(model="fake", input="One", instructions="Rule.")
        second = client.responses.create(model="fake", input=[{"role": "user", "content": "Two"}], previous_response_id=first.id)
    again = serve(data_folder=tmp_path)
    with client_of(again) as client:
        client.responses.create(model="fake", input="Three", previous_response_id=second.id)
        assert client.responses.retrieve(first.id).output_text == "Hello there, world."
        items = client.responses.input_items.list(first.id).data
    assert said(again) == [
        ("user", "One"),
        ("assistant", "Hello there, world."),
        ("user", "Two"),
        ("assistant", "Hello there, world."),
        ("user", "Three"),
    ]
    assert items[0].type == "message" and items[0].content[0].type == "input_text"


def test_an_answer_that_is_not_stored_is_not_there(server: Running) -> None:
    with client_of(server) as client:
        response = client.responses.create(model="fake", input="Hi", store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="fake", input="Hi", previous_response_id=response.id)
    assert caught.value.code == "previous_response_not_found" and caught.value.param == "previous_response_id"


def test_a_deleted_answer_is_gone_from_the_disk(serve: Serve, tmp_path: Path) -> None:
    marker = "a text that is nowhere else"
    server = serve(data_folder=tmp_path)
    with client_of(server) as client:
        response = client.responses.create(model="fake", input=marker)
        assert any(marker.encode() in path.read_bytes() for path in tmp_path.iterdir())
        client.responses.delete(response.id)
        assert not any(marker.encode() in path.read_bytes() for path in tmp_path.iterdir())
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(response.id)


def test_another_keys_answers_look_as_if_they_were_not_there(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    mine, yours = create(keys, "mine")[0], create(keys, "yours")[0]
    server = serve(None, None, Keys(keys), need_key=True, data_folder=tmp_path)
    with client_of(server, mine) as me, client_of(server, yours) as you:
        response = me.responses.create(model="fake", input="Hi")
        assert me.responses.retrieve(response.id).id == response.id
        missing = response.id[:-1] + ("0" if response.id[-1] != "0" else "1")
        for act in (you.responses.retrieve, you.responses.delete, you.responses.cancel, you.responses.input_items.list):
            told = []
            for key in (response.id, missing):
                with pytest.raises(openai.NotFoundError) as caught:
                    act(key)  # type: ignore[operator]
                told.append(str(caught.value).replace(key, "ID"))
            assert told[0] == told[1]
        with pytest.raises(openai.BadRequestError):
            you.responses.create(model="fake", input="Hi", previous_response_id=response.id)


def test_items_are_listed_in_pages(server: Running) -> None:
    given: Any = [{"role": "user", "content": str(number)} for number in range(5)]
    with client_of(server) as client:
        response = client.responses.create(model="fake", input=given)
        page: Any = client.responses.input_items.list(response.id, limit=2, order="asc")
        assert [item.content[0].text for item in page.data] == ["0", "1"] and page.has_more
        assert [item.content[0].text for item in client.responses.input_items.list(response.id, limit=2)] == ["4", "3", "2", "1", "0"]  # type: ignore[union-attr]


def test_an_answer_in_the_background_is_asked_for_until_it_is_there(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=[Wait(0.2), *words("Hello there.")])))
    with client_of(server) as client:
        response = client.responses.create(model="fake", input="Hi", background=True)
        assert response.status == "in_progress" and response.output == []
        for _ in range(200):
            if (response := client.responses.retrieve(response.id)).status != "in_progress":
                break
            time.sleep(0.02)
        assert response.status == "completed" and response.output_text == "Hello there."
        assert client.responses.cancel(response.id).status == "completed"
    assert asked(server).caller.priority.value == "low" and server.pool.used == 0 and server.house.admission.running == 0


def test_an_answer_in_the_background_can_be_cancelled(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=[*words("a"), Wait(60)])))
    with client_of(server) as client:
        response = client.responses.create(model="fake", input="Hi", background=True)
        assert client.responses.cancel(response.id).status == "cancelled"
        assert client.responses.retrieve(response.id).status == "cancelled"
        assert server.pool.only.open == 0 and server.pool.used == 0 and server.house.admission.running == 0
        other = client.responses.create(model="fake", input="Hi", background=True)
        client.responses.delete(other.id)
        assert server.pool.only.open == 0
        plain = client.responses.create(model="fake", input="Hi", stream=True)
        plain.close()
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(other.id)


def test_a_background_answer_that_a_stop_cut_off_has_failed(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakePool(FakeService(script=[*words("a"), Wait(60)])), data_folder=tmp_path)
    with client_of(server) as client:
        response = client.responses.create(model="fake", input="Hi", background=True)
    server.front.stop(at_once=True)
    time.sleep(0.3)
    with client_of(serve(data_folder=tmp_path)) as client:
        found = client.responses.retrieve(response.id)
    assert found.status == "failed" and found.error is not None and found.error.code == "server_error"


def test_an_answer_that_reaches_its_limit_is_incomplete(server: Running) -> None:
    with client_of(server) as client:
        response = client.responses.create(model="fake", input="Hi", max_output_tokens=2)
        assert response.status == "incomplete" and response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens" and response.output_text == "Hello there,"
        events: list[Any] = list(client.responses.create(model="fake", input="Hi", max_output_tokens=2, stream=True))
        assert events[-1].type == "response.incomplete"
        client.responses.create(model="fake", input="Go on", previous_response_id=response.id)
    assert said(server)[1] == ("assistant", "Hello there,")


def test_a_failure_in_the_middle_is_told_and_kept(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=[Text("a"), Failed(ProviderError("gone"))])))
    with client_of(server) as client:
        events: list[Any] = list(client.responses.create(model="fake", input="Hi", stream=True))
        assert events[-1].type == "response.failed" and events[-1].response.error.code == "server_error"
        assert client.responses.retrieve(events[0].response.id).status == "failed"
        with pytest.raises(openai.BadRequestError, match="failed"):
            client.responses.create(model="fake", input="Hi", previous_response_id=events[0].response.id)
        with pytest.raises(openai.InternalServerError):
            client.responses.create(model="fake", input="Hi")


def test_errors_before_the_first_event_are_http_errors(serve: Serve) -> None:
    with client_of(serve(FakePool(FakeService(script=[Refuse(Busy("Full.", retry_after_s=2))])))) as client:
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError):
                client.responses.create(model="fake", input="Hi", stream=stream)


def test_log_probabilities_come_when_they_are_included(server: Running) -> None:
    with client_of(server) as client:
        response = client.responses.create(model="fake", input="Hi", include=["message.output_text.logprobs"], top_logprobs=2)
        events: list[Any] = list(client.responses.create(model="fake", input="Hi", include=["message.output_text.logprobs"], stream=True))
    part: Any = response.output[0].content[0]  # type: ignore[union-attr]
    assert [each.token for each in part.logprobs] == ["Hello", " there,", " world."] and part.logprobs[0].logprob == -0.5
    assert [event.logprobs[0].token for event in events if event.type == "response.output_text.delta"] == ["Hello", " there,", " world."]


def test_a_schema_holds_the_answer(server: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with client_of(server) as client:
        client.responses.create(model="fake", input="Hi", text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    constraint = asked(server).constraint
    assert constraint is not None and constraint.kind is ConstraintKind.JSON_SCHEMA and json.loads(constraint.text) == schema


def test_pictures_reach_models_that_see(serve: Serve) -> None:
    server = serve(FakePool(FakeService(facts_given={"sees_pictures": True})))
    parts: Any = [
        {"type": "input_text", "text": "What?"},
        {"type": "input_image", "image_url": "data:image/png;base64,eA==", "detail": "auto"},
    ]
    with client_of(server) as client:
        client.responses.create(model="fake", input=[{"role": "user", "content": parts}])
    text, picture = asked(server).messages[0].parts
    assert not isinstance(text, Image) and text.text == "What?" and isinstance(picture, Image)


def test_truncation_leaves_out_the_oldest_turns_and_tells_how_many(serve: Serve) -> None:
    server = serve(FakePool(FakeService(context_length=30)))
    given: Any = [
        {"role": "user", "content": "Old words " * 5},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "New."},
    ]
    with client_of(server) as client:
        response: Any = client.responses.create(model="fake", input=given, instructions="Rule.", truncation="auto", max_output_tokens=15)
    assert said(server) == [("system", "Rule."), ("user", "New.")] and response.dropped_messages == 2


def test_tokens_are_counted_without_answering(server: Running) -> None:
    with client_of(server) as client:
        counted = client.responses.input_tokens.count(model="fake", input="one two", instructions="three")
    assert counted.input_tokens == 3 + 4 + 3 and server.pool.only.asked == []


def test_a_server_that_keeps_nothing_says_so(serve: Serve, tmp_path: Path) -> None:
    server = serve(keep_days=0, data_folder=tmp_path)
    with client_of(server) as client:
        assert client.responses.create(model="fake", input="Hi").store is False  # type: ignore[attr-defined]
        with pytest.raises(openai.BadRequestError, match="stores no answers"):
            client.responses.create(model="fake", input="Hi", store=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "Hi", "conversation": "c"}, "conversation"),
        ({"input": "Hi", "reasoning": {"effort": "low"}}, "reasoning"),
        ({"input": "Hi", "n": 2}, "n"),
        ({"input": "Hi", "tools": [{"type": "web_search"}]}, "tools.0"),
        ({"input": "Hi", "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"input": "Hi", "tool_choice": "required"}, "tool_choice"),
        ({"input": "Hi", "background": True, "store": False}, "background"),
        ({"input": "Hi", "background": True, "stream": True}, "stream"),
        ({"input": "Hi", "top_logprobs": 3}, "top_logprobs"),
        ({"input": "Hi", "max_output_tokens": 0}, "max_output_tokens"),
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "{"}]}, "input.0.arguments"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,eA=="}]}]}, "input"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(server: Running, body: Any, param: str) -> None:
    response = httpx.post(f"{server.url}/v1/responses", json={"model": "fake", **body})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param, error


def test_leaving_a_stream_cancels_and_keeps_nothing(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=[*words("a b"), Wait(60), *words("c")])))
    with client_of(server) as client:
        stream = client.responses.create(model="fake", input="Hi", stream=True)
        created: Any = next(iter(stream))
        stream.close()
        for _ in range(200):
            if server.pool.only.cancelled:
                break
            time.sleep(0.01)
        assert server.pool.only.cancelled == 1 and server.pool.only.open == 0 and server.pool.used == 0
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(created.response.id)


def test_an_answer_that_was_given_up_is_a_failure(serve: Serve) -> None:
    script = [Text("a"), Finished(StopReason.CANCELLED, Usage(7, 1), 1)]
    with client_of(serve(FakePool(FakeService(script=script)))) as client:
        assert client.responses.create(model="fake", input="Hi").status == "failed"
