"""Who comes in: names of hosts, origins of pages, keys, limits of keys, and what of all that is logged."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from herd.errors import UsageError
from herd.providers.base import Text
from herd.server import keys as keyring
from herd.server.keys import Keys
from herd.server.settings import Settings
from server.echo import ROUTES, body
from server.fake_pool import FakePool, FakeService, Wait
from server.raw import ask, connection, read, until

Serve = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server" / "keys.json"


@pytest.fixture
def locked(serve: Serve, file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, dict[str, str]]]:
    """`locked(**limits)`: a server that needs keys, and the header with a key of these limits."""
    monkeypatch.setattr(keyring, "LOOK_AGAIN_S", 0.0)

    def start(pool: FakePool | None = None, **limits: Any) -> tuple[Any, dict[str, str]]:
        text, _ = keyring.create(file, "mine", **limits)
        return serve(pool, ROUTES, Keys(file), need_key=True), {"authorization": f"Bearer {text}"}

    return start


def post(server: Any, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/ask", json=body(**fields), headers=headers)


# --- names and pages


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:1", "LOCALHOST:8000", "app.localhost"])
def test_names_of_this_computer_are_answered(serve: Serve, host: str) -> None:
    server = serve(routes=ROUTES)
    assert ask(server.port, f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "192.168.0.1", "a@localhost", "[::1", "x y"]
)
def test_other_names_are_refused_on_loopback(serve: Serve, host: str) -> None:
    """A web page may let its own name point to this computer; the browser then sends that name."""
    server = serve(routes=ROUTES)
    found = ask(server.port, f"GET /v1/wait HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert found.status == 421 and found.json()["error"]["code"] == "wrong_host"


def test_names_can_be_added(serve: Serve) -> None:
    server = serve(routes=ROUTES, allow_host=("lab.example",))
    assert httpx.get(f"{server.url}/health", headers={"host": "lab.example:8000"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://", "http://127.0.0.1.evil.example", "é"])
def test_pages_of_others_are_refused(serve: Serve, origin: str) -> None:
    server = serve(routes=ROUTES)
    found = httpx.post(f"{server.url}/v1/ask", json=body(), headers={b"origin": origin.encode("latin-1")})
    assert found.status_code == 403 and "access-control-allow-origin" not in found.headers and server.pool.only.asked == []


def test_pages_of_the_server_itself_are_answered(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    assert post(server, {"origin": server.url}).status_code == 200
    assert post(server, {"origin": server.url.replace("http:", "https:")}).status_code == 200, "through a proxy that speaks TLS"


def test_pages_of_allowed_origins_may_read_answers_but_send_no_credentials(serve: Serve) -> None:
    server = serve(routes=ROUTES, allow_origin=("https://Page.example",))
    origin = {"origin": "https://page.example"}
    found = post(server, origin)
    assert found.status_code == 200 and found.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-credentials" not in found.headers
    asked = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "content-type, x-api-key, b@d"}
    before = httpx.options(f"{server.url}/v1/ask", headers=asked)
    assert before.status_code == 204 and before.headers["access-control-allow-headers"] == "content-type, x-api-key"
    assert httpx.options(f"{server.url}/v1/ask", headers={**asked, "origin": "https://other.example"}).status_code == 403
    assert serve(routes=ROUTES, allow_origin=("*",)) and post(serve(routes=ROUTES, allow_origin=("*",)), origin).status_code == 200


@pytest.mark.parametrize("origin", ["foo", "https://a.example/page", "a.example", "https:// a.example"])
def test_an_origin_that_no_browser_sends_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(UsageError, match="allow_origin has"):
        Settings(allow_origin=(origin,))


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/json; charset=utf-16"]
)
def test_bodies_that_a_page_can_send_without_asking_are_refused(serve: Serve, kind: str) -> None:
    server = serve(routes=ROUTES)
    found = httpx.post(f"{server.url}/v1/ask", content=b'{"prompt":"Hi"}', headers={"content-type": kind})
    assert found.status_code == 415 and server.pool.only.asked == []


# --- keys


def test_every_route_but_health_needs_the_key(locked: Any) -> None:
    server, key = locked()
    for route in ROUTES:
        for method in route.methods or ():
            url = f"{server.url}{route.path}"
            without = httpx.request(method, url).status_code
            assert without == (200 if route.path == "/health" else 401), route.path
            assert httpx.request(method, url, headers=key).status_code != 401
    assert httpx.get(f"{server.url}/nothing").status_code == 401 and httpx.get(f"{server.url}/nothing", headers=key).status_code == 404


def test_a_key_comes_in_either_header(locked: Any) -> None:
    server, key = locked()
    text = key["authorization"].split()[1]
    assert post(server, key).status_code == 200 and post(server, {"x-api-key": text}).status_code == 200
    assert post(server, {**key, "x-api-key": text}).status_code == 200
    assert post(server, {**key, "x-api-key": "other"}).status_code == 401
    assert httpx.get(f"{server.url}/v1/wait?key={text}").status_code == 401
    assert httpx.get(f"{server.url}/v1/wait?key={text}", headers=key).json()["error"]["param"] == "key"


@pytest.mark.parametrize("text", ["", "herd-", "herd-" + "a" * 43, "x" * 20_000, "k\xe9y", "Basic abc", "Bearer"])
def test_a_wrong_key_is_refused_and_not_repeated(locked: Any, text: str) -> None:
    server, _ = locked()
    for name in ("authorization", "x-api-key"):
        found = httpx.post(f"{server.url}/v1/ask", json=body(), headers={name.encode(): text.encode("latin-1")})
        error = found.json()["error"]
        assert found.status_code == 401 and error["code"] == "invalid_api_key" and (len(text) < 10 or text not in error["message"])


def test_a_revoked_or_expired_key_is_refused_while_the_server_runs(locked: Any, file: Path) -> None:
    server, key = locked()
    assert post(server, key).status_code == 200
    keyring.limit(file, "mine", expires=int(time.time()) - 1)
    assert post(server, key).status_code == 401
    keyring.limit(file, "mine", expires=None)
    assert post(server, key).status_code == 200
    keyring.revoke(file, "mine")
    assert post(server, key).status_code == 401


def test_a_damaged_file_of_keys_lets_nobody_in(locked: Any, file: Path) -> None:
    server, key = locked()
    file.write_text("{")
    assert post(server, key).status_code == 401
    file.unlink()
    assert post(server, key).status_code == 401


def test_a_key_reaches_only_its_models(locked: Any) -> None:
    server, key = locked(FakePool(FakeService("fake"), FakeService("other")), models=("oth*",))
    hidden, unknown = post(server, key, model="fake"), post(server, key, model="nothing")
    assert hidden.status_code == unknown.status_code == 404 and hidden.json()["error"]["code"] == "model_not_found"
    assert hidden.text.replace("fake", "nothing") == unknown.text
    assert post(server, key, model="other").status_code == 200


def test_the_caller_is_the_key_whatever_the_body_says(locked: Any) -> None:
    server, key = locked()
    post(server, key, user="somebody else")
    (asked,) = server.pool.only.asked
    assert asked.caller.name == server.house.keys.all()[0].id and len(asked.caller.salt) == 32
    assert 0 < asked.deadline_s <= server.house.settings.deadline_s


def test_salts_differ_between_keys_and_stay_between_starts(file: Path) -> None:
    first, second = Keys(file), Keys(file)
    assert first.salt("a") == second.salt("a") != first.salt("b")
    assert Keys(file.parent / "elsewhere" / "keys.json").salt("a") != first.salt("a")


def test_the_file_of_keys_holds_no_key_and_is_its_owners(file: Path) -> None:
    text, key = keyring.create(file, "mine")
    assert text.startswith("herd-") and text not in file.read_text() and key.hash in file.read_text()
    assert os.stat(file).st_mode & 0o777 == 0o600 and os.stat(file.with_name("secret")).st_mode & 0o777 == 0o600 if Keys(file) else False
    assert [each.name for each in file.parent.iterdir() if each.suffix == ".part"] == []


# --- limits


def test_a_key_has_so_many_requests_a_minute(locked: Any) -> None:
    server, key = locked(requests_per_minute=2)
    assert [post(server, key).status_code for _ in range(3)] == [200, 200, 429]
    found = post(server, key)
    assert 25 <= int(found.headers["retry-after"]) <= 30 and found.json()["error"]["code"] == "rate_limit_exceeded"
    assert httpx.get(f"{server.url}/ready", headers=key).status_code == 200, "who asks how the server does is not counted"


def test_a_key_has_so_many_tokens_a_minute(locked: Any) -> None:
    """A prompt of the scripted model has 7 tokens, its answer 3."""
    server, key = locked(tokens_per_minute=15)
    assert [post(server, key).status_code for _ in range(3)] == [200, 200, 429]
    assert int(post(server, key).headers["retry-after"]) > 15


def test_an_answer_that_is_left_costs_what_was_seen_of_it(locked: Any) -> None:
    pool = FakePool(FakeService(script=[*[Text("a")] * 50, Wait(60), Text("b")]))
    server, key = locked(pool, tokens_per_minute=20)
    with httpx.stream("POST", f"{server.url}/v1/ask", json=body(stream=True), headers=key) as answer:
        text = ""
        for piece in answer.iter_text():
            text += piece
            if text.count('"a"') == 50:
                break
    assert until(lambda: pool.only.cancelled == 1) and post(server, key).status_code == 429


def test_a_key_has_so_many_answers_at_the_same_time(locked: Any) -> None:
    server, key = locked(FakePool(FakeService(script=[Text("a"), Wait(60)])), streams=1)
    with httpx.stream("POST", f"{server.url}/v1/ask", json=body(stream=True), headers=key):
        began = time.monotonic()
        found = post(server, key)
        assert found.status_code == 429 and time.monotonic() - began < 0.5
    server.pool.only.script = [Text("a")]
    assert until(lambda: post(server, key).status_code == 200)


def test_a_full_server_says_so_at_once(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=[Text("a"), Wait(60)])), ROUTES, max_requests=1)
    with httpx.stream("POST", f"{server.url}/v1/ask", json=body(stream=True)), httpx.Client() as client:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            found = client.post(f"{server.url}/v1/ask", json=body())
            times.append(time.perf_counter() - began)
            assert found.status_code == 429 and found.headers["retry-after"] == "1"
        assert sorted(times)[10] < 0.05
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert 'herd_refusals_total{reason="full"} 20.0' in httpx.get(f"{server.url}/metrics").text


def test_a_client_may_set_a_deadline_that_is_shorter(serve: Serve) -> None:
    server = serve(routes=ROUTES, deadline_s=100)
    for text, expected in (("2.5", 2.5), ("500", 100)):
        assert post(server, {"x-deadline-s": text}).status_code == 200
        assert expected - 1 < server.pool.only.asked[-1].deadline_s <= expected
    for text in ("-1", "0", "1e999", "NaN", "x", "[]", "9" * 100):
        assert post(server, {"x-deadline-s": text}).json()["error"]["param"] == "x-deadline-s"


# --- the log


def test_a_line_of_the_log_is_one_line_without_prompts_or_keys(locked: Any, caplog: pytest.LogCaptureFixture) -> None:
    server, key = locked()
    with caplog.at_level(logging.INFO, "herd.server"):
        post(server, key, prompt="SECRET-PROMPT")
        httpx.get(f"{server.url}/a%0Ab%1B[31mc?q=SECRET-QUERY" + "d" * 500, headers={**key, "x-request-id": "bad id"})
        with connection(server.port) as made:
            made.sendall(b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n")
            read(made)
        assert until(lambda: len(caplog.records) >= 2)
    lines = [record.getMessage() for record in caplog.records if record.name == "herd.server.requests"]
    assert lines and all("SECRET" not in line and "\n" not in line and "\x1b" not in line for line in lines)
    assert key["authorization"].split()[1] not in caplog.text and "Hello" not in caplog.text
    first = json.loads(lines[0])
    assert first["status"] == 200 and first["prompt_tokens"] == 7 and first["answer_tokens"] == 3 and first["path"] == "/v1/ask"


def test_prompts_are_logged_where_that_was_asked_for(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "herd.server"):
        post(serve(routes=ROUTES), prompt="first")
        post(serve(routes=ROUTES, log_prompts=True), prompt="two\nlines\x1b[31m")
    assert "first" not in caplog.text and "two\\nlines\\x1b[31m" in caplog.text


def test_a_bug_is_logged_and_tells_the_client_nothing(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(routes=ROUTES)
    found = httpx.get(f"{server.url}/v1/fail")
    assert found.status_code == 500 and "secret" not in found.text and "0x" not in found.text
    assert "RuntimeError" in caplog.text and found.headers["x-request-id"] in caplog.text


def test_measures_bear_the_name_under_which_a_model_is_served(serve: Any) -> None:
    service = FakeService(name="mine", facts_given={"name": "a-file-of-this-name"})
    running = serve(FakePool(service))
    asked = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}]}
    assert httpx.post(running.url + "/v1/chat/completions", json=asked).status_code == 200
    told = httpx.get(running.url + "/metrics").text
    assert 'herd_answer_tokens_total{model="mine"}' in told and "a-file-of-this-name" not in told


def test_a_charset_that_is_not_utf_8_is_told_as_it_came(serve: Any) -> None:
    answer = httpx.post(serve().url + "/v1/chat/completions", content=b"{}", headers={"content-type": "application/json; charset=latin-1"})
    assert answer.status_code == 415 and "charset=latin-1" in answer.json()["error"]["message"]
