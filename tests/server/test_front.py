"""What a connection may do: every way of sending too much, too slowly, or something that is not HTTP, on a real socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from herd.providers.base import Text
from herd.server import front
from server.echo import ROUTES, body
from server.fake_pool import FakePool, FakeService, Wait, words
from server.raw import Answered, ask, connection, is_closed, read, receive, send_all, until

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ASK = b'{"prompt":"Hi"}'
QUICK = {"header_timeout_s": 0.3, "body_timeout_s": 0.3, "stall_timeout_s": 0.5}
Serve = Callable[..., Any]


def rest(made: socket.socket, within_s: float = 5.0) -> bytes:
    """What still comes before the server ends the connection; `TimeoutError` where it does not."""
    made.settimeout(within_s)
    return b"".join(iter(lambda: receive(made), b""))


def still_answers(server: Any) -> bool:
    return httpx.get(f"{server.url}/health").status_code == 200


def test_a_half_sent_head_ends_the_connection(serve: Serve) -> None:
    server = serve(routes=ROUTES, **QUICK)
    with connection(server.port) as made:
        made.sendall(GET)
        assert read(made).status == 408 and is_closed(made, 1)
    assert still_answers(server)


def test_a_head_that_comes_byte_by_byte_does_not_win_time(serve: Serve) -> None:
    server = serve(routes=ROUTES, **QUICK)
    began = time.monotonic()
    with connection(server.port) as made:
        for byte in GET + b"X: " + b"y" * 1000:
            send_all(made, bytes([byte]))
            time.sleep(0.02)
            if time.monotonic() - began > 1:
                break
        assert read(made).status == 408


def test_a_connection_that_says_nothing_is_closed_without_a_word(serve: Serve) -> None:
    server = serve(routes=ROUTES, **QUICK)
    with connection(server.port) as made:
        assert is_closed(made, 2)
    with connection(server.port) as made:
        made.sendall(b"\r\n\r\n")
        assert is_closed(made, 3)


def test_an_idle_connection_is_closed_after_a_while(serve: Serve) -> None:
    server = serve(routes=ROUTES, keep_alive_s=1)
    with connection(server.port) as made:
        made.sendall(GET + b"\r\n")
        assert read(made).status == 200 and not is_closed(made, 0.5) and is_closed(made, 2)


def test_a_body_that_does_not_come_is_given_up(serve: Serve) -> None:
    server = serve(routes=ROUTES, **QUICK)
    with connection(server.port) as made:
        made.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        assert read(made).status == 408 and is_closed(made, 3)
    assert until(lambda: server.house.admission.running == 0) and server.pool.only.asked == []


def test_a_client_that_leaves_within_its_body_leaves_nothing(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    with connection(server.port) as made:
        made.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        assert until(lambda: server.house.admission.running == 1)
    assert until(lambda: server.house.admission.running == 0 and server.house.admission.body_bytes == 0)


def test_a_head_of_64_mib_is_refused_early(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    began = time.monotonic()
    answered = ask(server.port, GET + b"X: " + b"y" * (64 << 20) + b"\r\n\r\n")
    assert answered.status in (431, 0) and time.monotonic() - began < 5
    assert ask(server.port, GET + b"X: " + b"y" * 40_000 + b"\r\n\r\n").status == 431
    assert ask(server.port, GET + b"X: " + b"y" * 30_000 + b"\r\n\r\n").status == 200


def test_ten_thousand_headers_are_refused(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    assert ask(server.port, GET + b"".join(b"X%d: y\r\n" % i for i in range(10_000)) + b"\r\n").status == 431
    assert ask(server.port, GET + b"".join(b"X%d: y\r\n" % i for i in range(99)) + b"\r\n").status == 200
    assert ask(server.port, GET + b"".join(b"X%d: y\r\n" % i for i in range(100)) + b"\r\n").status == 431


def test_an_address_of_100_kb_is_refused(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    assert ask(server.port, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").status in (414, 431)
    assert ask(server.port, b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 414


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Content-Length: 15\r\nContent-Length: 15\r\n",
        b"Content-Length: 15\r\nContent-Length: 16\r\n",
        b"Content-Length: +15\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 0x0f\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Content-Length: 15, 15\r\n",
        b"Content-Length : 15\r\n",
        b"Host: other\r\nContent-Length: 15\r\n",
        b" folded: 1\r\nContent-Length: 15\r\n",
        b"A\x00b: 1\r\nContent-Length: 15\r\n",
        b"A: b\x00\r\nContent-Length: 15\r\n",
        b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\nContent-Length: 15\r\n",
        b"x-api-key: a\r\nX-Api-Key: b\r\nContent-Length: 15\r\n",
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(serve: Serve, head: bytes) -> None:
    server = serve(routes=ROUTES)
    with connection(server.port) as made:
        made.sendall(POST + head + b"\r\n" + ASK + GET + b"\r\n")
        assert read(made).status == 400 and is_closed(made, 4)
    assert server.pool.only.asked == [] and still_answers(server)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /health HTTP/0.9\r\nHost: a\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health\r\n\r\n", 400),
        (b"NONSENSE /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (POST + b"Content-Encoding: gzip\r\nContent-Length: 15\r\n\r\n" + ASK, 415),
        (POST + b"Expect: a-miracle\r\nContent-Length: 15\r\n\r\n" + ASK, 417),
    ],
)
def test_what_is_not_our_http_is_refused(serve: Serve, data: bytes, status: int) -> None:
    server = serve(routes=ROUTES)
    assert ask(server.port, data).status == status
    assert still_answers(server)


def test_a_body_is_bounded_whatever_its_length_says(serve: Serve) -> None:
    server = serve(routes=ROUTES, max_body_bytes=1000)
    answered = ask(server.port, POST + b"Content-Length: 1001\r\n\r\n")
    assert answered.status == 413 and answered.json()["error"]["code"] == "request_too_large"
    chunk = b"100\r\n" + b" " * 256 + b"\r\n"
    assert ask(server.port, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 10_000).status == 413
    frames = b"1;" + b"x" * 1000 + b"\r\n \r\n"
    assert ask(server.port, POST + b"Transfer-Encoding: chunked\r\n\r\n" + frames * 1000).status == 413
    assert still_answers(server) and until(lambda: server.house.admission.body_bytes == 0)


def test_files_have_a_bound_of_their_own(serve: Serve) -> None:
    server = serve(routes=ROUTES, max_body_bytes=1000, max_upload_bytes=100_000)
    assert httpx.post(f"{server.url}/v1/upload", content=b"x" * 90_000).json() == {"size": 90_000}
    assert httpx.post(f"{server.url}/v1/upload", content=b"x" * 100_001).status_code == 413


def test_bodies_together_are_bounded(serve: Serve) -> None:
    server = serve(routes=ROUTES, max_bodies_bytes=1000)
    found = httpx.post(f"{server.url}/v1/ask", json=body(prompt="x" * 1200))
    assert found.status_code == 503 and "retry-after" in found.headers
    assert httpx.post(f"{server.url}/v1/ask", json=body()).status_code == 200


def test_what_follows_a_chunked_body_is_no_header(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    data = POST + b"Transfer-Encoding: chunked\r\n\r\nf\r\n" + ASK + b"\r\n0\r\nOrigin: http://evil.example\r\n\r\n"
    assert ask(server.port, data).status == 200


def test_an_offer_of_another_protocol_is_passed_over(serve: Serve) -> None:
    """Java's client offers HTTP/2 with its first request, and waits for an answer in HTTP/1.1."""
    server = serve(routes=ROUTES)
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    with connection(server.port) as made:
        made.sendall(POST + offer + b"Content-Length: 15\r\n\r\n" + ASK[:7])
        time.sleep(0.05)
        made.sendall(ASK[7:])
        assert read(made).json() == {"text": "Hello there, world."}
        made.sendall(GET + b"\r\n")
        assert read(made).status == 200


def test_requests_in_one_go_are_answered_in_order(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    with connection(server.port) as made:
        made.sendall(GET.replace(b"health", b"v1/wait?seconds=0.1") + b"\r\n" + GET.replace(b"health", b"ready") + b"\r\n")
        assert read(made).json() == {"status": "ok"}
        assert read(made).json() == {"status": "ready"}


def test_thousands_of_requests_in_one_go_are_refused(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    with connection(server.port) as made:
        send_all(made, (GET.replace(b"health", b"v1/wait?seconds=1") + b"\r\n") * 3000)
        assert is_closed(made, 5)
    assert still_answers(server)


def test_one_connection_too_many_is_told_so(serve: Serve) -> None:
    server = serve(routes=ROUTES, max_connections=3)
    with connection(server.port) as one, connection(server.port) as two, connection(server.port) as three:
        assert until(lambda: len(server.front.connections) == 3)
        answered = ask(server.port, GET + b"\r\n")
        assert answered.status == 503 and answered.headers["retry-after"] == "1"
        for made in (one, two, three):
            made.sendall(GET + b"\r\n")
            assert read(made).status == 200
    assert until(lambda: len(server.front.connections) == 0) and still_answers(server)


def long_answer() -> FakePool:
    return FakePool(FakeService(script=[Text("x" * 10_000)] * 2000))


def test_a_reader_that_stops_reading_is_dropped(serve: Serve) -> None:
    server = serve(long_answer(), ROUTES, **QUICK)
    with connection(server.port) as made:
        made.sendall(POST + b'Content-Length: 29\r\n\r\n{"prompt":"Hi","stream":true}')
        assert until(lambda: server.pool.only.open == 1)
        assert until(lambda: server.pool.only.open == 0, 10), "the answer goes on although nobody reads it"
    assert server.pool.only.cancelled == 1 and still_answers(server)
    assert 'herd_connections_dropped_total{reason="reader"} 1.0' in httpx.get(f"{server.url}/metrics").text


def test_a_reader_that_stops_does_not_hold_up_others(serve: Serve) -> None:
    server = serve(long_answer(), ROUTES, stall_timeout_s=20)
    with connection(server.port) as made:
        made.sendall(POST + b'Content-Length: 29\r\n\r\n{"prompt":"Hi","stream":true}')
        assert until(lambda: server.pool.only.open == 1)
        began = time.monotonic()
        server.pool.only.script = words("One two three")
        assert httpx.post(f"{server.url}/v1/ask", json=body()).json() == {"text": "One two three"}
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.25])
def test_a_client_that_leaves_ends_its_answer(serve: Serve, stream: bool, after_s: float) -> None:
    """Before it is accepted, before the first word, and in the middle."""
    script = [Wait(0.1), Text("a"), Wait(0.1), Text("b"), Wait(60), Text("c")]
    server = serve(FakePool(FakeService(script=script)), ROUTES)
    data = httpx.Request("POST", server.url, json=body(stream=stream)).content
    with connection(server.port) as made:
        made.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        assert until(lambda: server.pool.only.open == 1)
        time.sleep(after_s)
    assert until(lambda: server.pool.only.open == 0) and server.pool.only.cancelled == 1
    assert until(lambda: server.house.admission.running == 0 and server.pool.used == 0)
    assert "herd_requests_cancelled_total 1.0" in httpx.get(f"{server.url}/metrics").text


def test_a_client_that_leaves_ends_all_that_it_asked_in_one_go(serve: Serve) -> None:
    server = serve(FakePool(FakeService(script=[Text("a"), Wait(60), Text("b")])), ROUTES)
    with connection(server.port) as made:
        made.sendall((POST + b'Content-Length: 29\r\n\r\n{"prompt":"Hi","stream":true}') * 2)
        assert until(lambda: server.pool.only.open == 1)
    assert until(lambda: server.pool.only.open == 0) and len(server.pool.only.asked) == 1


@contextmanager
def full(serve: Serve, **settings: Any) -> Iterator[Any]:
    """A server that has room for one request, and answers one, of the connection `inside`."""
    server = serve(FakePool(FakeService(script=[Text("a"), Wait(60)])), ROUTES, max_requests=1, **settings)
    with connection(server.port) as made:
        made.sendall(POST + b'Content-Length: 29\r\n\r\n{"prompt":"Hi","stream":true}')
        assert until(lambda: server.house.admission.running == 1)
        server.inside = made
        yield server


def is_full(answered: Answered, *, stays: bool = False) -> bool:
    said = answered.status == 429 and answered.json()["error"]["code"] == "rate_limit_exceeded"
    ends = answered.headers.get("connection") == "close"
    return said and int(answered.headers["retry-after"]) >= 1 and ends is not stays


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n", b"Expect: 100-continue\r\n"])
def test_a_full_server_refuses_at_the_head_and_ends_the_connection(serve: Serve, more: bytes) -> None:
    with full(serve) as server:
        with connection(server.port) as made:
            made.sendall(POST + more + b"Content-Length: 15\r\n\r\n")
            assert is_full(read(made))
            send_all(made, ASK)
            assert rest(made) == b""
        assert until(lambda: len(server.front.connections) == 1) and still_answers(server)


def test_a_refused_client_that_stays_is_closed(serve: Serve) -> None:
    with full(serve) as server, connection(server.port) as made:
        made.sendall(POST + b"Content-Length: 15\r\n\r\n")
        assert is_full(read(made))
        assert until(lambda: len(server.front.connections) == 1)


@pytest.mark.parametrize("head", [b"Content-Length: 15\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nf\r\n"])
@pytest.mark.parametrize("apart", [True, False])
def test_a_refused_client_whose_request_is_there_keeps_its_connection(
    serve: Serve, head: bytes, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "PATIENCE_S", 10.0)
    asked = ASK + (b"\r\n0\r\n\r\n" if b"chunked" in head else b"")
    with full(serve, keep_alive_s=1) as server, connection(server.port) as made:
        for _ in range(3):
            for piece in (POST + head, asked) if apart else (POST + head + asked,):
                made.sendall(piece)
            assert is_full(read(made), stays=True)
        server.inside.close()
        server.pool.only.script = [Text("a")]
        assert until(lambda: server.house.admission.running == 0)
        made.sendall(POST + head + asked)
        assert read(made).status == 200 and not is_closed(made, 0.5) and is_closed(made, 2)


def test_refused_clients_keep_no_more_than_half_of_the_connections(serve: Serve) -> None:
    with full(serve, max_connections=4) as server, connection(server.port) as made, connection(server.port) as other:
        assert until(lambda: len(server.front.connections) == 3)
        made.sendall(POST + b"Content-Length: 15\r\n\r\n" + ASK)
        assert is_full(read(made)) and rest(made) == b""
        assert until(lambda: len(server.front.connections) == 2)
        other.sendall(POST + b"Content-Length: 15\r\n\r\n" + ASK)
        assert is_full(read(other), stays=True)


def test_a_request_in_line_that_is_refused_keeps_its_connection(serve: Serve) -> None:
    with full(serve) as server, connection(server.port) as made:
        asked = POST + b"Content-Length: 15\r\n\r\n" + ASK
        made.sendall(GET.replace(b"health", b"v1/wait?seconds=0.1") + b"\r\n" + asked)
        assert read(made).json() == {"status": "ok"} and is_full(read(made), stays=True)
        made.sendall(asked)
        assert is_full(read(made), stays=True)


def test_a_refused_client_may_send_its_large_body(serve: Serve) -> None:
    with full(serve) as server, connection(server.port) as made:
        made.sendall(POST + b"Content-Length: 10000000\r\n\r\n" + b" " * 10_000_000)
        assert is_full(read(made)) and rest(made) == b""


def test_a_full_server_refuses_requests_in_one_go_once(serve: Serve) -> None:
    with full(serve) as server, connection(server.port) as made:
        send_all(made, (POST + b"Content-Length: 15\r\n\r\n" + ASK) * 500)
        assert is_full(read(made)) and rest(made) == b""
        assert 'herd_refusals_total{reason="full"} 1.0' in httpx.get(f"{server.url}/metrics").text


@pytest.mark.parametrize(
    ("head", "sent"),
    [
        (b"Transfer-Encoding: chunked\r\n", b"this is no chunk\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"800\r\n" + b"x" * 2048 + b"\r\n0\r\n\r\n"),
        (b"Content-Length: 15\r\n", b"{"),
    ],
)
@pytest.mark.parametrize("apart", [True, False])
def test_a_refusal_is_the_last_word_whatever_the_body(serve: Serve, head: bytes, sent: bytes, apart: bool) -> None:
    with full(serve, max_body_bytes=1000, **QUICK) as server, connection(server.port) as made:
        made.sendall(POST + head + b"\r\n" + (b"" if apart else sent))
        assert is_full(read(made))
        if apart:
            send_all(made, sent)
        assert rest(made) == b""


def test_a_request_in_line_that_finds_the_server_full_is_refused(serve: Serve) -> None:
    with full(serve) as server, connection(server.port) as made:
        made.sendall(GET.replace(b"health", b"v1/wait?seconds=0.1") + b"\r\n" + POST + b"Content-Length: 15\r\n\r\n" + ASK + GET + b"\r\n")
        assert read(made).json() == {"status": "ok"}
        assert is_full(read(made)) and rest(made) == b""


def test_a_request_that_is_answered_before_its_body_leaves_an_idle_connection(serve: Serve) -> None:
    server = serve(routes=ROUTES, keep_alive_s=1)
    with connection(server.port, 4) as made:
        made.sendall(GET.replace(b"health", b"nowhere") + b"Content-Length: 2\r\n\r\n")
        assert read(made).status == 404
        made.sendall(b"{}")
        assert not is_closed(made, 0.5) and is_closed(made, 2)


def test_a_request_that_is_answered_before_its_body_has_one_answer(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    with connection(server.port, 4) as made:
        made.sendall(GET.replace(b"health", b"nowhere") + b"Transfer-Encoding: chunked\r\n\r\n")
        assert read(made).status == 404
        made.sendall(b"this is no chunk\r\n")
        assert rest(made) == b""


def test_time_without_requests_is_no_pace(serve: Serve) -> None:
    server = serve(routes=ROUTES)
    server.house.admission._ended_at -= 3600.0
    assert httpx.post(f"{server.url}/v1/ask", json=body()).status_code == 200
    assert until(lambda: server.house.admission._interval_s > 0) and server.house.admission._interval_s < 1.0
