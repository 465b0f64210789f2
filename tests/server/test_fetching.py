"""Pictures by address: what may be fetched, from a server that is ours, and everything that must not be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from herd.errors import UsageError
from herd.server.fetching import Resolve, Rules, check_host, fetch_picture, read_url

PICTURE = b"\x89PNG not really"


class Site:
    """A web server on a free port; `replies` says for each path what it does."""

    def __init__(self, replies: dict[str, Callable[[BaseHTTPRequestHandler], None]]) -> None:
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                replies[self.path](self)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Quietly."""

        self.asked: list[tuple[str, dict[str, str]]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def rules(self, *hosts: str, **limits: Any) -> Rules:
        """The site's own address and port are allowed, and these hosts at its port."""
        return Rules(hosts=(f"127.0.0.1:{self.port}", *(f"{host}:{self.port}" for host in hosts)), **limits)

    def url(self, path: str = "/a.png", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextmanager
def site(**replies: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Site]:
    made = Site({"/a.png": send(), **{f"/{name}": reply for name, reply in replies.items()}})
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()


def send(body: bytes = PICTURE, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"content_type": "image/png", "content_length": str(len(body)), **headers}.items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.send_header("connection", "close")
        handler.end_headers()
        try:
            handler.wfile.write(body)
        except OSError:
            handler.close_connection = True

    return reply


def resolving(**names: Sequence[str]) -> Resolve:
    """A resolver that counts: names with dots are written with underscores."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return names.get(host.replace(".", "_"), [host])

    return resolve


def fetch(url: str, rules: Rules, resolve: Resolve | None = None) -> bytes:
    return asyncio.run(fetch_picture(url, rules, resolve=resolve or resolving()))


def refused(url: str, rules: Rules, resolve: Resolve | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        fetch(url, rules, resolve)
    return str(caught.value)


def test_a_picture_comes_from_an_allowed_host() -> None:
    with site() as ours:
        assert fetch(ours.url(host="media.test"), ours.rules("media.test"), resolving(media_test=["127.0.0.1"])) == PICTURE
        path, headers = ours.asked[0]
    assert path == "/a.png" and headers["host"] == f"media.test:{ours.port}" and headers["accept-encoding"] == "identity"
    assert "cookie" not in headers and "authorization" not in headers


def test_nothing_is_fetched_unless_hosts_are_allowed() -> None:
    with site() as ours:
        assert "data: URL" in refused(ours.url(), Rules())
        assert ours.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://media.test/a",
        "gopher://media.test/a",
        "//media.test/a",
        "media.test/a",
        "http:media.test",
        "http:///a",
        "http://",
        "http://media.test\\@evil.test/",
        "http://evil.test\\.media.test/",
        "http://user@media.test/",
        "http://user:pass@media.test/",
        "http://media.test@evil.test/",
        "http://media.test./a",
        "http://localhost./a",
        "http://.media.test/",
        "http://media..test/",
        "http://-media.test/",
        "http://media.test:0/",
        "http://media.test:65536/",
        "http://media.test:8 0/",
        "http://media.test:/",
        "http://media.test/a b",
        "http://media.test/a\r\nHost: evil.test",
        "http://media.test/a\tb",
        " http://media.test/",
        "http://media.test/\u00e9",
        "http://m\u00e9dia.test/",
        "http://\uff4dedia.test/",
        "http://media.test\u3002evil/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://127.1/",
        "http://127.0.0.1.2/",
        "http://0177.0.0.1/",
        "http://[::1/",
        "http://[:::1]/",
        "http://[fe80::1%25eth0]/",
        "http://media.test/" + "a" * 3000,
        "http://media.test/\x00",
    ],
)
def test_addresses_that_programs_could_read_differently_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        read_url(url)


def test_an_address_is_read_in_its_parts() -> None:
    found = read_url("HTTPS://Media.Test:8443/a/b.png?x=1&y=%20")
    assert (found.scheme, found.host, found.port, found.target) == ("https", "media.test", 8443, "/a/b.png?x=1&y=%20")
    assert read_url("http://x.y/a?b#c d").target == "/a?b", "what follows # is not sent"
    assert found.host_field == "media.test:8443" and read_url("http://x.y").host_field == "x.y" and read_url("http://x.y").target == "/"
    assert read_url("http://[2001:db8::1]:80/").host_field == "[2001:db8::1]"


@pytest.mark.parametrize(
    ("url", "hosts", "is_allowed"),
    [
        ("http://media.test/", ["media.test"], True),
        ("https://media.test/", ["MEDIA.test "], True),
        ("http://media.test:8080/", ["media.test"], False),
        ("http://media.test:8080/", ["media.test:8080"], True),
        ("http://media.test/", ["media.test:8080"], False),
        ("http://evil-media.test/", ["media.test"], False),
        ("http://media.test.evil/", ["media.test"], False),
        ("http://a.media.test/", ["media.test"], False),
        ("http://a.media.test/", ["*.media.test"], True),
        ("http://a.b.media.test/", ["*.media.test"], True),
        ("http://media.test/", ["*.media.test"], False),
        ("http://evilmedia.test/", ["*.media.test"], False),
        ("http://a.media.test:81/", ["*.media.test:81"], True),
        ("http://a.media.test:82/", ["*.media.test:81"], False),
        ("http://[::1]:5/", ["[::1]:5"], True),
        ("http://media.test/", ["*"], False),
        ("http://media.test/", [""], False),
    ],
)
def test_hosts_are_allowed_exactly(url: str, hosts: list[str], is_allowed: bool) -> None:
    if is_allowed:
        check_host(read_url(url), hosts)
        return
    with pytest.raises(UsageError):
        check_host(read_url(url), hosts)


@pytest.mark.parametrize(
    "inside",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1"),
        *("255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "2001:0:7f00:1::", "nonsense", ""),
    ],
)
def test_a_name_that_leads_inside_is_refused_without_a_connection(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "open_connection", unreachable)
    rules = Rules(hosts=("media.test",))
    assert "not a public one" in refused("http://media.test/a.png", rules, resolving(media_test=[inside]))
    assert "not a public one" in refused("http://media.test/a.png", rules, resolving(media_test=["93.184.216.34", inside])), "one of two"


async def unreachable(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("no connection may be made")


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked() -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    calls: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        calls.append(host)
        return next(answers)

    with site() as ours:
        assert fetch(ours.url(host="media.test"), ours.rules("media.test"), rebinding) == PICTURE
    assert calls == ["media.test"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_to_an_allowed_place(status: int) -> None:
    with site(old=send(b"", status, location="/a.png")) as ours:
        assert fetch(ours.url("/old"), ours.rules()) == PICTURE
        assert [path for path, _ in ours.asked] == ["/old", "/a.png"]


@pytest.mark.parametrize(
    "location",
    [
        *("http://evil.test/a.png", "http://127.0.0.1/a.png", "http://169.254.169.254/latest", "file:///etc/passwd", "//evil.test/x"),
        *("http://127.0.0.1:1/a.png", "http://x@127.0.0.1/", "http://evil.test\\@127.0.0.1/", "http://[::1]/", "/a b"),
    ],
)
def test_a_redirect_to_where_nothing_may_be_fetched_is_refused(location: str) -> None:
    with site(old=send(b"", 302, location=location)) as ours:
        refused(ours.url("/old"), ours.rules())
        assert [path for path, _ in ours.asked] == ["/old"]


def test_a_redirect_from_https_stays_there() -> None:
    from herd.server import fetching

    with pytest.raises(UsageError, match="https to http"):
        fetching._redirected(read_url("https://media.test/"), "http://media.test/a.png")
    assert fetching._redirected(read_url("https://media.test/x/y"), "../z").target == "/z"


def test_endless_redirects_end() -> None:
    with site(old=send(b"", 302, location="/old")) as ours:
        assert "more than 3 times" in refused(ours.url("/old"), ours.rules())
        assert len(ours.asked) == 4


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("content-type", "image/png")
    handler.send_header("connection", "close")
    handler.end_headers()
    try:
        for _ in range(10_000):
            handler.wfile.write(b"x" * 10_000)
    except OSError:
        handler.close_connection = True


def slow(stop: threading.Event) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "image/png")
        handler.send_header("content-length", "100")
        handler.end_headers()
        handler.wfile.write(b"x")
        stop.wait(5)

    return reply


def test_bytes_and_time_are_bounded() -> None:
    stop = threading.Event()
    replies = {"endless": endless, "lying": send(PICTURE, content_length="9999999"), "slow": slow(stop), "large": send(b"x" * 5000)}
    with site(**replies) as ours:
        assert "larger than 4096" in refused(ours.url("/endless"), ours.rules(max_bytes=4096))
        assert "larger than 4096" in refused(ours.url("/lying"), ours.rules(max_bytes=4096))
        assert "larger than 4096" in refused(ours.url("/large"), ours.rules(max_bytes=4096))
        assert "0.2 s" in refused(ours.url("/slow"), ours.rules(timeout_s=0.2))
        stop.set()


@pytest.mark.parametrize(
    "reply",
    [
        send(b"<html>", content_type="text/html"),
        send(b"<svg/>", content_type="image/svg+xml"),
        send(PICTURE, content_type=""),
        send(PICTURE, content_encoding="gzip"),
        send(PICTURE, 404),
        send(PICTURE, 500),
        send(b"", 302),
        send(b"", 304),
        send(PICTURE, 206),
    ],
)
def test_what_is_no_picture_is_refused(reply: Callable[[BaseHTTPRequestHandler], None]) -> None:
    with site(other=reply) as ours:
        refused(ours.url("/other"), ours.rules())


def test_what_listens_inside_cannot_be_told_from_what_does_not() -> None:
    def nonsense(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")
        handler.close_connection = True

    with site(other=nonsense, missing=send(b"", 404)) as ours:
        rules = ours.rules()
        found = {refused(ours.url("/other"), rules), refused(ours.url("/missing"), rules)}
    found.add(refused(ours.url(), rules))  # nobody listens there any more
    assert found == {"The picture at this address could not be fetched."}
