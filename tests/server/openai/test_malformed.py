"""Bodies that are no requests, sent to every endpoint of OpenAI's API: each is refused with the error object that clients read, and the
next request is answered as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from herd.server.openai import chat, completions, embeddings, models, moderations, tokens
from server.conftest import running

ROUTES = [*chat.ROUTES, *completions.ROUTES, *embeddings.ROUTES, *moderations.ROUTES, *models.ROUTES, *tokens.ROUTES]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"model": "fake", "prompt": "Hi"},
    "/v1/embeddings": {"model": "fake", "input": "Hi"},
    "/v1/moderations": {"model": "fake", "input": "Hi"},
    "/tokenize": {"model": "fake", "prompt": "Hi"},
    "/detokenize": {"model": "fake", "tokens": [72]},
}
BODIES = [
    *(b"", b" ", b"{", b"nonsense", b"[]", b"null", b"5", b'"text"', b"true", b"{}"),
    *(b'{"model": "fake", "model": "fake"}', b'{"model": NaN}', b'{"model": 1e999}', b"\xef\xbb\xbf{}", "{}".encode("utf-16")),
    *(
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * 100_000,
        b'{"model": ' + b"9" * 10_000 + b"}",
    ),
]


@pytest.fixture(scope="module")
def raw() -> Iterator[httpx.Client]:
    with running() as server, httpx.Client(base_url=server.url) as client:
        yield client


def error_of(reply: httpx.Response, statuses: tuple[int, ...] = (400,)) -> dict[str, Any]:
    assert reply.status_code in statuses, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error" and error["message"]
    return error


def test_every_endpoint_is_tried() -> None:
    assert {route.path for route in ROUTES if "POST" in (route.methods or ())} == set(GOOD)


@pytest.mark.parametrize("path", GOOD)
def test_what_is_no_request_is_refused_and_nothing_breaks(raw: httpx.Client, path: str) -> None:
    for body in BODIES:
        error_of(raw.post(path, content=body, headers={"content-type": "application/json"}))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""):
        error_of(raw.post(path, content=json.dumps(GOOD[path]), headers={"content-type": kind}), (415,))
    assert raw.post(path, json=GOOD[path]).status_code in (200, 400)
    error_of(raw.get(path), (405, 404))


@pytest.mark.parametrize("path", GOOD)
def test_every_field_may_be_anything_and_is_never_a_bug_of_ours(raw: httpx.Client, path: str) -> None:
    """Each field of each body as each kind of wrong value: an answer or a refusal that names a field, never a 500."""
    route = next(route for route in ROUTES if route.path == path)
    body = route.endpoint.operation.body  # type: ignore[attr-defined]
    values = [-1, 2**63, 1e308, "1\x00", True, [], {}, [{}], None]
    for name in sorted(body.known() | set(body.HARMLESS) | set(body.REFUSED)):
        for value in values:
            if name == "stream" and value is True:
                continue
            reply = raw.post(path, json={**GOOD[path], name: value})
            if reply.status_code != 200:
                error = error_of(reply, (400, 404))
                assert error["param"], (name, value, error)


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\x", "a\x00b", "fake ", "FAKE", "fa\u200bke", "\u202efake", "fake:x", ":"])
def test_names_of_models_are_names_and_no_paths(raw: httpx.Client, name: str) -> None:
    for path, good in GOOD.items():
        error = error_of(raw.post(path, json={**good, "model": name}), (404,))
        assert error["code"] == "model_not_found" and error["param"] == "model"
    error_of(raw.post("/v1/completions", json={"model": "x" * 10_000, "prompt": "x"}))


@pytest.mark.parametrize("path", [f"/v1/models/{name}" for name in ("..%2f..%2fetc%2fpasswd", "%00", "nothing", "x" * 5000)])
def test_models_that_are_looked_up_are_names_and_no_paths(raw: httpx.Client, path: str) -> None:
    error_of(raw.get(path), (404, 400))
