"""No, said at once: where a server is full, most of what it does is to say so, and that must not take from those whom it answers.

What a full server is asked to generate is refused when its head is read: no task, no body, no route. The connection stays if the whole
request is small and there; else it ends with the refusal. The head is judged as any other's, so a stranger learns no more here than
elsewhere, and the refusal is the one that the gate would have given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, final

from herd.server.access_log import log_request
from herd.server.errors import ApiError, error_body
from herd.server.operations import operation_of

if TYPE_CHECKING:
    from starlette.routing import Route

    from herd.server.callers import Visit
    from herd.server.house import House
    from herd.server.visiting import Door

Scope = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]
Response = tuple[int, Headers, bytes]
"""Status, headers and body."""
_ALWAYS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def with_own_headers(given: Headers, visit: Visit, for_page: Headers) -> Headers:
    """A response's headers with what every response has. for_page: what a page of another origin needs."""
    milliseconds = int((time.perf_counter() - visit.began) * 1000)
    own = [(b"x-request-id", visit.request_id.encode()), (b"openai-processing-ms", b"%d" % milliseconds)]
    if not any(name == b"cache-control" for name, _ in given):
        own.append((b"cache-control", b"no-store"))
    return [*given, *own, *_ALWAYS, *for_page]


def error_response(path: str, error: ApiError, request_id: str) -> tuple[Headers, bytes]:
    """An error's headers and body, in the shape of the path's API."""
    body = error_body(path, error, request_id)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()], body


def note(house: House, scope: Scope, visit: Visit, status: int, logged: int) -> None:
    """Counts and logs a request that is over. logged: the status that its line in the log has."""
    route = visit.route or "unknown"
    seconds = time.perf_counter() - visit.began
    house.metrics.seen(route, status, seconds)
    log_request(scope, visit, logged, seconds)


@final
class Refusing:
    """Called with the scope of a request whose head was read: a refusal (status, headers, body), or None where it has to be looked at."""

    def __init__(self, house: House, door: Door, routes: Sequence[Route]) -> None:
        self._house = house
        self._door = door
        self._generating = {
            (method, route.path): operation
            for route, operation in zip(routes, map(operation_of, routes), strict=True)
            if operation.generates and "{" not in route.path
            for method in route.methods or ()
        }

    def __call__(self, scope: Scope) -> Response | None:
        house = self._house
        if house.admission.running < house.settings.max_requests:
            return None
        operation = self._generating.get((scope["method"], scope["path"]))
        if operation is None:
            return None
        visit = self._door.visit(scope)
        visit.route = scope["path"]
        error = _raised(lambda: self._door.open(scope, visit, operation)) or _raised(lambda: house.admission.check_place(visit))
        if error is None:
            return None
        headers, body = error_response(scope["path"], error, visit.request_id)
        note(house, scope, visit, error.status, error.status)
        return error.status, with_own_headers(headers, visit, self._door.headers_for(scope)), body


def _raised(check: Callable[[], None]) -> ApiError | None:
    try:
        check()
    except ApiError as error:
        return error
    return None
