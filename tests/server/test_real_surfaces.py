"""Anthropic's, Ollama's and OpenAI's clients in front of a real engine process. The weights are random: what an answer has to be, it is by
no luck."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from server.openai.real import engines_behind, write_model

TOOL: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Bergen"]}}, "required": ["city"]}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
MODEL = "three"
ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("model")
    with engines_behind(write_model(folder / "tiny"), {MODEL: "llama3.1"}, data_folder=folder / "kept") as found:
        yield found


def test_anthropics_client_gets_the_call_that_it_demands(url: str) -> None:
    tools: Any = [{"name": "weather", "input_schema": TOOL}]
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        choice: Any = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
        message = client.messages.create(**ASK, tools=tools, tool_choice=choice)
        with client.messages.stream(**ASK, tools=tools, tool_choice=choice) as stream:
            streamed = stream.get_final_message()
        for each in (message, streamed):
            (call,) = each.content
            assert each.stop_reason == "tool_use" and call.type == "tool_use" and call.name == "weather"
            assert call.input in ({"city": "Oslo"}, {"city": "Bergen"})
        shaped = client.messages.create(**ASK, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
        (block,) = shaped.content
        assert block.type == "text" and set(json.loads(block.text)) == {"a"}
        counted = client.messages.count_tokens(model=MODEL, messages=ASK["messages"])
        again = client.messages.create(**ASK | {"max_tokens": 1})
        assert counted.input_tokens == again.usage.input_tokens + (again.usage.cache_read_input_tokens or 0)
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(**ASK | {"messages": [{"role": "user", "content": "x" * 9000}]})


def test_ollamas_client_gets_the_same_answer_at_once_and_by_lines(url: str) -> None:
    with ollama.Client(host=url) as client:
        options = {"seed": 3, "num_predict": 20}
        whole = client.chat(MODEL, ASK["messages"], options=options)
        pieces = list(client.chat(MODEL, ASK["messages"], options=options, stream=True))
        assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
        assert whole.eval_count == pieces[-1].eval_count == 20 and whole.done_reason == "length"
        assert whole.eval_duration is not None and whole.eval_duration > 0
        answer = client.generate(MODEL, "Hi", format=SCHEMA, options={"num_predict": 100})
        assert set(json.loads(answer.response)) == {"a"}
        raw = client.generate(MODEL, "<|begin_of_text|>ab", raw=True, options={"num_predict": 2})
        assert raw.prompt_eval_count == 3
        vectors = client.embed(MODEL, ["a", "b"]).embeddings
        assert [sum(value * value for value in vector) for vector in vectors] == [pytest.approx(1.0, abs=1e-4)] * 2
        assert client.ps().models[0].model == MODEL and "tools" in (client.show(MODEL).capabilities or [])


def test_responses_go_on_from_each_other(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        first = client.responses.create(model=MODEL, input="One", max_output_tokens=10, extra_body={"seed": 1})
        events: list[Any] = list(
            client.responses.create(model=MODEL, input="One", max_output_tokens=10, stream=True, extra_body={"seed": 1})
        )
        assert events[-1].response.output_text == first.output_text and first.status == "incomplete"
        second = client.responses.create(model=MODEL, input="Two", previous_response_id=first.id, max_output_tokens=5)
        counted = client.responses.input_tokens.count(model=MODEL, input="Two", previous_response_id=first.id)
        assert second.usage is not None and first.usage is not None
        assert second.usage.input_tokens == counted.input_tokens > first.usage.input_tokens + 10
        tool: Any = {"type": "function", "name": "weather", "parameters": TOOL, "strict": True}
        called = client.responses.create(model=MODEL, input="Go", tools=[tool], tool_choice="required", max_output_tokens=300)
        assert {item.name for item in called.output if item.type == "function_call"} == {"weather"}


def test_a_batch_gives_the_answers_that_single_requests_get(url: str) -> None:
    bodies = [{**ASK, "max_tokens": 8, "seed": number, "temperature": 1.0} for number in range(12)]
    lines = [{"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body} for i, body in enumerate(bodies)]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        file = client.files.create(file=("in", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        while (batch := client.batches.retrieve(batch.id)).status not in ("completed", "failed", "expired"):
            time.sleep(0.05)
        assert batch.output_file_id is not None and batch.error_file_id is None
        told = [json.loads(line) for line in client.files.content(batch.output_file_id).read().splitlines()]
        alone = [client.chat.completions.create(**body).choices[0].message.content for body in bodies]  # type: ignore[call-overload]
    assert [each["response"]["body"]["choices"][0]["message"]["content"] for each in told] == alone
