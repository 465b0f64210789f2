"""An answer that goes out while it is made: server-sent events, or a JSON object a line.

    pieces (bytes, each a whole event) --EventStream--> chunks of HTTP

A stream is a plain ASGI response. Behind `front.py` a piece is written at once where the client reads as fast as it is told, and those of
an answer as soon as the engine says them (`pouring.py`); elsewhere, and for all others, it is one `send`. When the client leaves, the
request's task is cancelled (see `app.py`), and with it the iteration of the pieces. A client that does not read is dropped by `front.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from herd.errors import HerdError
from herd.server.errors import ApiError, api_error, error_event
from herd.server.pouring import AnswerPieces

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
LAST_WORD_S = 0.5
_LOG = logging.getLogger("herd.server")


class EventStream:
    """Sends pieces as they come.

    pieces   whole events, ready to be sent. An error that they raise becomes the last event, in the shape of the path's API
    held     what is to be left when the stream is over, however it ends (the use of a model)
    ping     what is sent after `ping_s` seconds without a piece, so that nobody between thinks that the stream is dead; empty: nothing
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        *,
        media: str = SSE,
        held: AsyncExitStack | None = None,
        headers: Mapping[str, str] | None = None,
        ping: bytes = PING,
        ping_s: float = 15.0,
    ) -> None:
        self._pieces = pieces
        self._held = held
        self._ping = ping if media == SSE else b""
        self.ping_s = ping_s
        self._num_sent = 0
        self.headers = {
            "content-type": media if media != SSE else f"{SSE}; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
        }
        self.headers.update(headers or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pinging = _Pinging(self, send) if self._ping else None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _raw(self.headers)})
            await self._send_all(scope, send)
            if pinging is not None:
                await pinging.aclose()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if pinging is not None:
                await pinging.aclose()
            await self.aclose()

    async def aclose(self) -> None:
        """Cancels what is still being made, and leaves what was held."""
        close = getattr(self._pieces, "aclose", None)
        try:
            if close is not None:
                await close()
        finally:
            if self._held is not None:
                await self._held.aclose()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        message: dict[str, object] = {"type": "http.response.body", "body": b"", "more_body": True}
        write = scope.get("herd.write", _cannot)
        pieces = self._pieces
        try:
            while True:
                if write is not _cannot and isinstance(pieces, AnswerPieces):
                    await pieces.pour(write)
                try:
                    piece = await pieces.__anext__()
                except StopAsyncIteration:
                    break
                self._num_sent += 1
                if not write(piece):
                    message["body"] = piece
                    await send(message)
        except asyncio.CancelledError:
            # Either nobody listens any more, and this goes nowhere, or the server stops.
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    await self._send_error(scope, send, ApiError(503, "The server stopped before the answer was complete."))
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise
        except (HerdError, ApiError) as problem:
            await self._send_error(scope, send, api_error(problem))
        except Exception as problem:
            _LOG.exception("a stream failed")
            await self._send_error(scope, send, api_error(problem))

    async def _send_error(self, scope: Scope, send: Send, error: ApiError) -> None:
        visit = scope.get("herd.visit")
        piece = error_event(scope["path"], error, getattr(visit, "request_id", ""))
        await send({"type": "http.response.body", "body": piece, "more_body": True})

    @property
    def num_sent(self) -> int:
        """Pieces so far."""
        return self._num_sent + (self._pieces.num_poured if isinstance(self._pieces, AnswerPieces) else 0)

    async def ping(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": self._ping, "more_body": True})


class _Pinging:
    """Looks now and then whether a stream was quiet, and sends a ping then. No task, but for each ping."""

    def __init__(self, stream: EventStream, send: Send) -> None:
        self._stream = stream
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._before = stream.num_sent
        self._task: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(stream.ping_s, self._look)

    def _look(self) -> None:
        now = self._stream.num_sent
        if now == self._before and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._stream.ping(self._send))
        self._before = now
        self._timer = self._loop.call_later(self._stream.ping_s, self._look)

    async def aclose(self) -> None:
        """No more pings; one that is on its way to a client that does not read is given up."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


def _cannot(piece: bytes) -> bool:
    return False


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
