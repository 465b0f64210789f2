"""The outermost wall: what a connection may send, how long it may take, and how long it may leave our words unread.

uvicorn parses HTTP and speaks ASGI; it has no deadlines for heads and bodies, and no bound for either. This protocol adds them. What it
refuses never reaches the application:

    400  not HTTP, or HTTP that two programs could read differently (both lengths, doubled headers)
    408  a head or a body that does not come          413  a body that is too large        414, 431  a head that is
    415  a compressed body                            417  an unknown expectation          503  one connection too many
"""

from __future__ import annotations

import functools
import http
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from herd.server.errors import ApiError
from herd.server.refusing import error_response

if TYPE_CHECKING:
    import asyncio

    from herd.server.metrics import Metrics
    from herd.server.refusing import Refusing, Response
    from herd.server.settings import Settings

LINGER_S = 2.0
"""How long a refused connection is still read, so that the refusal is not lost in a reset."""
LINGER_BYTES = 1 << 20
"""What is read of it in that time, besides a body that would have been taken."""
REFUSED_BODY_BYTES = 64 << 10
"""A refused request whose body is no larger keeps its connection, if the body is there soon: a new one costs more than the refusal."""
PATIENCE_S = 0.02
"""How soon."""
SLOWEST_BODY = 16 << 10
"""Bytes a second that a body must come with, after its first `body_timeout_s` seconds."""
MAX_PIPELINED = 16
WRITE_HIGH_BYTES = 64 << 10
_ONCE = (b"authorization", b"content-length", b"content-type", b"host", b"origin", b"transfer-encoding", b"x-api-key", b"x-request-id")


_CLOSE = (b"connection", b"close")


class _Refused(Exception):
    """Raised in the parser's callbacks, to stop it."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `settings` has its limits; `upload_paths` are where bodies may be as large as files; `refusing` says no at once."""

    def __init__(
        self, *arguments: Any, settings: Settings, metrics: Metrics, upload_paths: frozenset[str], refusing: Refusing, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self._settings = settings
        self._metrics = metrics
        self._upload_paths = upload_paths
        self._refusing = refusing
        self._refusal: ApiError | None = None
        self._serving: RequestResponseCycle | None = None
        self._head_since: float | None = None
        self._body_since: float | None = None
        self._stalled_since: float | None = None
        self._ending_since: float | None = None
        self._no: Response | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._is_refused = False
        self._is_head_read = False
        self._head_bytes = self._head_size = self._num_headers = self._body_bytes = self._raw_bytes = self._dropped_bytes = 0
        self._body_limit = settings.max_body_bytes

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._head_since = self.loop.time()
        self._metrics.connections.set(len(self.connections))
        if len(self.connections) > self._settings.max_connections:
            self._refuse(ApiError(503, "There are too many connections.", retry_after_s=1.0))

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_no()
        for cycle in (self._serving, *(cycle for cycle, _ in self.pipeline)):
            _leave(cycle)
        self.pipeline.clear()
        super().connection_lost(exc)
        self._metrics.connections.set(len(self.connections))

    def pause_writing(self) -> None:
        self._stalled_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

    def check(self, now: float) -> None:
        """Ends what takes too long. Called for all connections, a few times a second."""
        limits = self._settings
        if self._ending_since is not None:
            if now - self._ending_since > LINGER_S:
                self.transport.abort()
        elif self.transport.is_closing():
            # What is still unsent then has as long as any other unread answer.
            self._stalled_since = self._stalled_since or now
        if self._stalled_since is not None and now - self._stalled_since > limits.stall_timeout_s:
            self._drop("reader")
        elif self._head_since is not None and now - self._head_since > limits.header_timeout_s:
            if self._head_bytes:
                self._refuse(ApiError(408, f"The head of the request was not there after {limits.header_timeout_s:g} seconds."))
            else:
                self.transport.close()
        elif self._body_since is not None and not self.pipeline and now - self._body_since > self._body_time_s():
            self._refuse(ApiError(408, f"The body of the request did not come ({self._body_bytes} bytes did)."))

    def _body_time_s(self) -> float:
        return self._settings.body_timeout_s + self._body_bytes / SLOWEST_BODY

    def _drop(self, reason: str) -> None:
        self._metrics.dropped.labels(reason).inc()
        self._stalled_since = None
        self.transport.abort()

    # --- what comes in

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES + self._body_limit:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        if self._is_head_read:
            self._raw_bytes += len(data)
        else:
            self._head_bytes += len(data)
            self._head_since = self._head_since or self.loop.time()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if self._no is not None:
                self._end_with_no()
            elif not self._is_refused:
                self._refuse(self._refusal or ApiError(400, "The request is not valid HTTP."))
        else:
            self._check_sizes()
            if self._no is not None:
                self._say_no()

    def _check_sizes(self) -> None:
        if not self._is_head_read and self._head_bytes > self._settings.max_header_bytes:
            self._refuse(ApiError(431, f"The head of the request is larger than {self._settings.max_header_bytes} bytes."))
        elif self._is_head_read and self._raw_bytes > 2 * self._body_limit + (64 << 10):
            self._refuse(ApiError(413, "The body of the request has more frame than content."))

    def on_message_begin(self) -> None:
        if self._no is not None:
            raise _Refused
        super().on_message_begin()
        self._head_since = self._head_since or self.loop.time()
        self._is_head_read = False
        self._head_size = self._num_headers = self._body_bytes = self._raw_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._settings.max_url_bytes:
            self._stop(ApiError(414, f"The address of the request is longer than {self._settings.max_url_bytes} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        self._head_size += len(name) + len(value) + 4
        if self._num_headers > self._settings.max_headers or self._head_size > self._settings.max_header_bytes:
            limits = f"{self._settings.max_headers} lines or {self._settings.max_header_bytes} bytes"
            self._stop(ApiError(431, f"The head of the request has more than {limits}."))
        if not self._is_head_read:  # what follows a body is no header of the request, whatever it is called
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check_head()
        self._is_head_read = True
        self._head_since = None
        self._body_since = self.loop.time()
        self._head_bytes = 0
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop(ApiError(400, f"More than {MAX_PIPELINED} requests were sent before the first was answered."))
        if not self.parser.should_upgrade():
            super().on_headers_complete()
        if self._is_refused:
            raise _Refused

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._body_limit:
            self._stop(ApiError(413, f"The body is larger than {self._body_limit} bytes."))
        if self._no is None:
            super().on_body(body)
        elif self._body_bytes > REFUSED_BODY_BYTES:
            raise _Refused

    def on_message_complete(self) -> None:
        self._body_since = None
        self._is_head_read = False
        if not self.parser.should_upgrade():
            super().on_message_complete()
            if self.cycle.response_complete and not self.transport.is_closing():
                # It was answered before its body was there, which has stopped the clock of an idle connection.
                self._unset_keepalive_if_required()
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._no is not None:  # to a request that was in line, and is refused now
            self._say_no()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._serving = cycle
        self._no = self._refusing(cast(dict[str, Any], cycle.scope))
        if self._no is not None:
            if cycle is not self.cycle or not self._may_stay(cycle):
                self._end_with_no()
            return
        cast(dict[str, Any], cycle.scope)["herd.write"] = functools.partial(_write, cycle)
        super()._start_asgi_task(cycle, app)

    def _check_head(self) -> None:
        """Refuses heads that leave a doubt about where the request ends, and bodies that are known to be too large."""
        found = {name: value for name, value in self.headers}
        for name in _ONCE if len(found) < len(self.headers) else ():
            if sum(each == name for each, _ in self.headers) > 1:
                self._stop(ApiError(400, f"The header {name.decode()} is there more than once."))
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._stop(ApiError(400, f"HTTP/{version} is not spoken here; HTTP/1.1 is."))
        if version == "1.1" and b"host" not in found:
            self._stop(ApiError(400, "The request has no Host header."))
        coding = found.get(b"transfer-encoding")
        if coding is not None and (coding.strip().lower() != b"chunked" or b"content-length" in found or version == "1.0"):
            self._stop(ApiError(400, "The length of the body is not clear: Transfer-Encoding must be chunked, without Content-Length."))
        if found.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
            self._stop(ApiError(415, "The body is compressed; send it as it is."))
        if found.get(b"expect", b"100-continue").strip().lower() != b"100-continue":
            self._stop(ApiError(417, "The header Expect may only be 100-continue."))
        path = self.url.partition(b"?")[0].decode("latin-1")
        self._body_limit = self._settings.max_upload_bytes if path in self._upload_paths else self._settings.max_body_bytes
        if int(found.get(b"content-length", b"0") or b"0") > self._body_limit:
            self._stop(ApiError(413, f"The body has {found[b'content-length'].decode()} bytes; at most {self._body_limit} are taken."))

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """A client may offer another protocol (HTTP/2 does); whoever does not want it answers as if it had not.

        The parser stops at such an offer, so another one reads the same head without it, and then the rest.
        """
        if self.parser.get_method() == b"CONNECT":
            self._refuse(ApiError(405, "This is no proxy."))
            return
        offers = (b"upgrade", b"connection", b"http2-settings")
        lines = [b"%s: %s" % (name, value) for name, value in self.headers if name not in offers]
        head = b"%s %s HTTP/1.1\r\n%s\r\n\r\n" % (self.parser.get_method(), self.url, b"\r\n".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self._is_head_read = False
        self._head_bytes = -len(head) - len(rest)
        self.data_received(head + rest)

    # --- no

    def _stop(self, refusal: ApiError) -> None:
        """Ends the parsing of what came; `data_received` then refuses."""
        self._refusal = refusal
        raise _Refused

    def _refuse(self, refusal: ApiError) -> None:
        """Says no and ends the connection."""
        self._metrics.dropped.labels(str(refusal.status)).inc()
        headers, body = error_response("/", refusal, "")
        self._end_with(_response(refusal.status, [*self.server_state.default_headers, *headers, _CLOSE], body))

    def _may_stay(self, cycle: RequestResponseCycle) -> bool:
        """Whether a connection is worth keeping after the refusal of what it asks; others find room while half of all are free."""
        if not cycle.keep_alive or self.expect_100_continue or 2 * len(self.connections) > self._settings.max_connections:
            return False
        return int(dict(self.headers).get(b"content-length", b"0") or b"0") <= REFUSED_BODY_BYTES

    def _say_no(self) -> None:
        """Refuses a request whose body is there, and keeps the connection; waits a moment for a body that is not."""
        assert self._no is not None
        if self._body_since is not None:
            if self._patience is None:
                self._patience = self.loop.call_later(PATIENCE_S, self._end_with_no)
            return
        if not self.cycle.keep_alive:  # the server ends by now
            self._end_with_no()
            return
        status, headers, body = self._no
        self._forget_no()
        self.cycle.response_started = self.cycle.response_complete = True
        self.transport.write(_response(status, [*self.server_state.default_headers, *headers], body))
        self.on_response_complete()

    def _end_with_no(self) -> None:
        assert self._no is not None
        status, headers, body = self._no
        self._end_with(_response(status, [*self.server_state.default_headers, *headers, _CLOSE], body))

    def _forget_no(self) -> None:
        self._no = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _end_with(self, response: bytes) -> None:
        """Sends a last response and ends the connection; what still comes is read for a while, and dropped.

        In the middle of an answer, or after the answer to a request whose body still comes, there is nothing that could be said.
        """
        self._is_refused = True
        self._forget_no()
        self._head_since = self._body_since = None
        serving = self._serving if self._serving is not None and not self._serving.response_complete else None
        has_begun = serving is not None and serving.response_started
        for cycle in (serving, *(cycle for cycle, _ in self.pipeline)):
            _leave(cycle)
        if has_begun or self._is_answered_early() or self.transport.is_closing():
            self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._ending_since = self.loop.time()
        self.transport.write(response)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _is_answered_early(self) -> bool:
        """Whether the request whose body is being read has its answer."""
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return self._is_head_read and cycle is not None and cycle.scope is self.scope and cycle.response_complete


def _write(cycle: RequestResponseCycle, piece: bytes) -> bool:
    """Sends a piece of a chunked body now, if nothing stands in its way; what `send` does, without a coroutine for each token."""
    if cycle.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding or cycle.response_complete:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    return True


def _leave(cycle: RequestResponseCycle | None) -> None:
    """Tells a request that nobody waits for its answer."""
    if cycle is not None and not cycle.response_complete:
        cycle.disconnected = True
        cycle.message_event.set()
        left: Callable[[], None] | None = cast(dict[str, Any], cycle.scope).get("herd.left")
        if left is not None:
            left()


def _response(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, http.HTTPStatus(status).phrase.encode())]
    lines += [b"%b: %b" % header for header in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
