"""Answers in pieces: their form, their last word when something goes wrong, signs of life, and what is measured of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from herd.errors import Busy, CapacityError, FileProblem, HerdError, ProviderError, UsageError
from herd.providers.base import Failed, Text
from server.echo import ROUTES, body
from server.fake_pool import FakePool, FakeService, Refuse, Wait, words
from server.raw import until

Serve = Callable[..., Any]


def stream(server: Any, path: str = "/v1/ask") -> tuple[httpx.Response, list[str]]:
    """The response, and its events."""
    with httpx.stream("POST", f"{server.url}{path}", json=body(stream=True)) as answer:
        text = "".join(answer.iter_text())
    return answer, [event for event in text.split("\n\n") if event]


def test_an_answer_comes_in_pieces(serve: Serve) -> None:
    answer, events = stream(serve(routes=ROUTES))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8" and answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"].startswith("req_") and answer.headers["transfer-encoding"] == "chunked"
    assert [json.loads(each.removeprefix("data: "))["text"] for each in events[:-1]] == ["Hello", " there,", " world."]
    assert events[-1] == "data: [DONE]"


def test_pieces_are_sent_when_they_are_there(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=[Text("a"), Wait(20), Text("b")])), ROUTES)
    began = time.monotonic()
    with httpx.stream("POST", f"{server.url}/v1/ask", json=body(stream=True)) as answer:
        assert "a" in next(answer.iter_text()) and time.monotonic() - began < 10


def test_a_stream_that_waits_says_that_it_lives(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=[Wait(0.0), Text("a"), Wait(0.5), Text("b")])), ROUTES, ping_s=0.1)
    _, events = stream(server)
    assert events.count(": ping") >= 2 and events[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UsageError("No.", param="prompt"), 400, None),
        (Busy("Later.", retry_after_s=2.5), 429, "rate_limit_exceeded"),
        (CapacityError("Full."), 503, "overloaded"),
        (ProviderError("pid 123 died at /proc/123"), 503, "overloaded"),
        (FileProblem("/secret/model.gguf: byte 5"), 500, "model_broken"),
    ],
)
def test_what_is_refused_before_it_begins_has_a_status_of_its_own(serve: Serve, error: HerdError, status: int, code: str | None) -> None:
    server = serve(FakePool(FakeService(script=[Refuse(error)])), ROUTES)
    for wants_stream in (True, False):
        found = httpx.post(f"{server.url}/v1/ask", json=body(stream=wants_stream))
        assert found.status_code == status and found.json()["error"]["code"] == code
        assert "secret" not in found.text and "123" not in found.text
        assert ("retry-after" in found.headers) == (status in (429, 503))
    assert until(lambda: server.pool.only.open == 0 and server.pool.used == 0)


@pytest.mark.parametrize("step", [Failed(ProviderError("pid 123")), ProviderError("pid 123"), RuntimeError("secret 0x7f")])
@pytest.mark.parametrize("path", ["/v1/ask", "/v1/messages/ask", "/api/ask"])
def test_what_fails_in_the_middle_ends_with_an_error_in_the_shape_of_its_api(serve: Serve, step: Any, path: str) -> None:
    server = serve(FakePool(FakeService(script=[*words("Hello there"), step])), ROUTES)
    answer, events = stream(server, path)
    assert answer.status_code == 200 and len(events) == 3 and "secret" not in events[-1] and "123" not in events[-1]
    last = events[-1].strip()
    if path == "/v1/ask":
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    elif path == "/api/ask":
        assert isinstance(json.loads(last)["error"], str)
    else:
        assert last.startswith("event: error\ndata: ") and json.loads(last.partition("data: ")[2])["type"] == "error"
    assert until(lambda: server.pool.only.open == 0 and server.pool.used == 0 and server.house.admission.running == 0)


def test_the_model_is_held_until_the_last_piece(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=[Text("a"), Wait(20), Text("b")])), ROUTES)
    with httpx.stream("POST", f"{server.url}/v1/ask", json=body(stream=True)) as answer:
        arriving = answer.iter_text()
        next(arriving)
        assert server.pool.used == 1 and server.house.admission.running == 1
    assert until(lambda: server.pool.used == 0 and server.house.admission.running == 0)


def test_times_and_tokens_of_answers_are_measured(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    stream(server)
    httpx.post(f"{server.url}/v1/ask", json=body())
    text = httpx.get(f"{server.url}/metrics").text
    for line in (
        'herd_answer_tokens_total{model="fake"} 6.0',
        'herd_prompt_tokens_total{model="fake"} 14.0',
        'herd_first_token_seconds_count{model="fake"} 2.0',
        'herd_token_seconds_count{model="fake"} 2.0',
        'herd_requests_total{route="/v1/ask",status="200"} 2.0',
        'herd_request_seconds_count{route="/v1/ask"} 2.0',
        "herd_requests_active 0.0",
        'herd_model_memory_bytes{model="fake",use="weights"} 1000.0',
    ):
        assert line in text, line


def test_many_streams_run_at_the_same_time(serve: Serve) -> None:
    """Two hundred clients, each with half a second of waiting: together they take about as long as one."""
    import asyncio

    server = serve(FakePool(FakeService(script=[Text("a"), Wait(0.5), Text("b")])), ROUTES)

    async def one(client: httpx.AsyncClient) -> str:
        return (await client.post("/v1/ask", json=body(stream=True))).text

    async def all_of_them() -> list[str]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
            return await asyncio.gather(*(one(client) for _ in range(200)))

    assert all(text.endswith("data: [DONE]\n\n") for text in asyncio.run(all_of_them()))
    assert server.pool.only.open == 0 and server.house.admission.running == 0
