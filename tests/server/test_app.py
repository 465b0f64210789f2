"""The way of a request to its handler and back: routes, errors in each API's shape, ids, and what bodies may say."""

from __future__ import annotations

from typing import Any

import httpx


def test_a_server_that_lives_says_so(server: Any) -> None:
    found = httpx.get(f"{server.url}/health")
    assert found.status_code == 200 and found.json() == {"status": "ok"}
    assert found.headers["x-content-type-options"] == "nosniff" and found.headers["x-request-id"].startswith("req_")


def test_a_path_that_leads_nowhere_is_an_error_in_the_shape_of_its_api(server: Any) -> None:
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["code"] == "unknown_url"
    assert httpx.get(f"{server.url}/api/nothing").json()["error"].startswith("There is nothing at GET")
    found = httpx.get(f"{server.url}/v1/messages/nothing", headers={"x-request-id": "mine-1"}).json()
    assert found["error"]["type"] == "not_found_error" and found["request_id"] == "mine-1"


def test_a_method_that_a_path_does_not_have_is_named(server: Any) -> None:
    found = httpx.post(f"{server.url}/health")
    assert found.status_code == 405 and "GET" in found.json()["error"]["message"]


def test_measures_are_there(server: Any) -> None:
    httpx.get(f"{server.url}/health")
    text = httpx.get(f"{server.url}/metrics").text
    assert 'herd_requests_total{route="/health",status="200"} 1.0' in text and 'herd_model_answer_tokens_total{model="fake"} 3.0' in text


def test_a_server_that_loads_is_not_ready(server: Any) -> None:
    assert httpx.get(f"{server.url}/ready").status_code == 200
    server.pool.is_ready = False
    found = httpx.get(f"{server.url}/ready")
    assert found.status_code == 503 and found.json() == {"status": "loading"}
