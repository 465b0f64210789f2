"""From a request to a handler: who asks, whether it may, what it said, and what becomes of errors.

    front.py -> App: host, origin, key, limits -> body -> handler -> response        (x-request-id on all of it)

A request is one task. When its client leaves, the task is cancelled wherever it is: in the queue, in a prompt, in the middle of an
answer; what the handler held (a model, an answer) is given back on the way out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from herd.errors import CapacityError, ProviderError, lack
from herd.server.callers import Visit
from herd.server.errors import ApiError, api_error
from herd.server.house import House
from herd.server.operations import Operation, operation_of
from herd.server.refusing import Refusing, error_response, note, with_own_headers
from herd.server.surfaces import surfaces
from herd.server.visiting import Door

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
LEFT = 499
_LOG = logging.getLogger("herd.server")


def build(house: House, routes: Sequence[Route] | None = None) -> App:
    """The server as an ASGI application."""
    return App(house, surfaces() if routes is None else routes)


class App:
    """Routes to handlers. It is `request.app`, so `request.app.state.house` is the house."""

    def __init__(self, house: House, routes: Sequence[Route]) -> None:
        self.state = State({"house": house})
        self.routes = list(routes)
        self._house = house
        self._door = Door(house)
        self.refusing = Refusing(house, self._door, routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1003})
        scope["app"] = self
        visit = scope["herd.visit"] = self._door.visit(scope)
        outcome = _Outcome(send, visit, self._door.headers_for(scope))
        try:
            with ExitStack() as held:
                await self._answer(scope, receive, outcome, visit, held)
        except ApiError as error:
            await outcome.fail(scope["path"], error)
        except asyncio.CancelledError:
            await outcome.fail(scope["path"], ApiError(503, "The server stopped before the answer was there.", retry_after_s=5.0))
        except Exception as problem:
            found = api_error(problem)
            if isinstance(problem, ProviderError):  # the engine's end was logged where it was seen
                _LOG.warning("request %s ended with its engine", visit.request_id)
            elif (lacking := lack(problem)) is not None:
                _LOG.error("request %s: %s", visit.request_id, lacking)
            elif found.status >= 500 and not isinstance(problem, CapacityError):
                _LOG.exception("request %s failed", visit.request_id)
            await outcome.fail(scope["path"], found)
        finally:
            self._note(scope, visit, outcome)

    async def _answer(self, scope: Scope, receive: Receive, outcome: _Outcome, visit: Visit, held: ExitStack) -> None:
        operation, endpoint = None, None
        if self._door.is_preflight(scope):
            return await self._door.preflight(scope)(scope, receive, outcome.send)
        found = self._find(scope)
        if found is not None:
            operation, endpoint = found
            visit.route = scope["herd.route"]
        self._door.open(scope, visit, operation)
        if operation is None or endpoint is None:
            raise self._unknown(scope)
        self._door.check_query(scope, operation)
        if operation.generates:
            held.enter_context(self._house.admission.place(visit))
        if not operation.uploads:
            scope["herd.body"] = await self._read(receive, held)
        await _Attended(scope, receive, outcome, self._house).run(endpoint)

    def _find(self, scope: Scope) -> tuple[Operation, Callable[[Request], Awaitable[Any]]] | None:
        for route in self.routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                scope.update(child)
                scope["herd.route"] = route.path
                return operation_of(route), route.endpoint
        return None

    def _unknown(self, scope: Scope) -> ApiError:
        path, method = scope["path"], scope["method"]
        methods = sorted({each for route in self.routes if route.matches(scope)[0] is Match.PARTIAL for each in route.methods or ()})
        if methods:
            return ApiError(405, f"{method} is not possible on {path!r:.100}; possible: {', '.join(methods)}.", code="method_not_allowed")
        return ApiError(404, f"There is nothing at {method} {path!r:.100}. /docs lists what there is.", code="unknown_url")

    async def _read(self, receive: Receive, held: ExitStack) -> bytes:
        """The whole body. `front.py` bounds it while it comes; this holds behind any other server too."""
        chunks: list[bytes] = []
        size = 0
        bodies = held.enter_context(self._house.admission.bodies())
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(LEFT, "The client left.")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._house.settings.max_body_bytes:
                raise ApiError(413, f"The body is larger than {self._house.settings.max_body_bytes} bytes.")
            bodies.add(len(chunks[-1]))
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _note(self, scope: Scope, visit: Visit, outcome: _Outcome) -> None:
        if not outcome.is_complete and outcome.status == 0:
            outcome.status = LEFT
        note(self._house, scope, visit, outcome.status, outcome.status if outcome.is_complete else LEFT)


class _Outcome:
    """The way back to the client: adds what every response has, and knows how far it came."""

    def __init__(self, send: Send, visit: Visit, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._visit = visit
        self._headers = headers
        self.status = 0
        self.is_complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            if not message.get("more_body", False):
                self.is_complete = True
        elif message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": with_own_headers(list(message.get("headers", ())), self._visit, self._headers)}
        await self._send(message)

    async def fail(self, path: str, error: ApiError) -> None:
        """An error as the response; where that already began, the connection is all that can still be ended."""
        if self.status:
            return
        if error.status == LEFT:
            self.status = LEFT
            return
        raw, body = error_response(path, error, self._visit.request_id)
        with suppress(OSError):
            await self.send({"type": "http.response.start", "status": error.status, "headers": raw})
            await self.send({"type": "http.response.body", "body": body})


class _Attended:
    """A handler that runs while its client is there.

    Its body was read before and lies in the scope. A handler of files reads by itself instead, and sees its client leave where it does.
    """

    def __init__(self, scope: Scope, receive: Receive, outcome: _Outcome, house: House) -> None:
        self._scope = scope
        self._receive = receive
        self._outcome = outcome
        self._house = house
        self._has_left = False

    async def run(self, endpoint: Callable[[Request], Awaitable[Any]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        is_read = "herd.body" in self._scope
        watching = None
        if is_read and "herd.write" in self._scope:  # `front.py` says it by itself
            self._scope["herd.left"] = lambda: self._leave(task)
        elif is_read:
            watching = asyncio.create_task(self._watch(task))
        receive = self._replay if is_read else self._receive
        try:
            response: Response = await endpoint(Request(self._scope, receive))
            await response(self._scope, receive, self._outcome.send)
        except asyncio.CancelledError:
            if not self._has_left:
                raise
            task.uncancel()
            self._house.metrics.cancelled.inc()
        finally:
            if watching is not None:
                watching.cancel()

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        """Cancels the request when its client leaves. A server also says so when the response is complete."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave(task)

    def _leave(self, task: asyncio.Task[Any]) -> None:
        if not self._outcome.is_complete and not self._has_left and not task.done():
            self._has_left = True
            task.cancel()

    async def _replay(self) -> Message:
        """What a handler receives: the body once, and then nothing until it is cancelled."""
        if "herd.body" not in self._scope:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": self._scope.pop("herd.body"), "more_body": False}


async def _live(receive: Receive, send: Send) -> None:
    """The life of the application: there is nothing to do at its ends."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
