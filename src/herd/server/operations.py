"""What each route does, said once beside its handler: the OpenAPI description, the docs and the gate read it from there."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from herd.records import dataclass

if TYPE_CHECKING:
    import pydantic
    from starlette.requests import Request
    from starlette.routing import Route

    from herd.server.reading import Body

Handler = Callable[["Request"], Awaitable[Any]]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that clients can ask for.

    summary     a line that says what it is
    body        the model of the request's body, if it has one
    reply       the model of a complete answer; None: JSON without a fixed shape, or no JSON (then `media` says what)
    status      of an answer that says yes
    streams     the media type of the answer in pieces, if the client may ask for that
    generates   whether a model works for it: such requests count against the limits of keys and of the server
    uploads     whether its body is a file (multipart), which the handler reads by itself
    form        the JSON schema of such a body's parts
    query       parameters of the address: name to (JSON schema, description)
    is_open     whether it is answered without a key
    tag         the group it is shown in
    """

    summary: str
    body: type[Body] | None = None
    reply: type[pydantic.BaseModel] | None = None
    media: str = "application/json"
    status: int = 200
    streams: str | None = None
    generates: bool = False
    uploads: bool = False
    form: dict[str, Any] | None = None
    query: tuple[tuple[str, dict[str, Any], str], ...] = ()
    is_open: bool = False
    tag: str = "OpenAI"


def operation(summary: str, **settings: Any) -> Callable[[H], H]:
    """Decorates a handler with its `Operation`; the arguments are its fields."""

    def say(handler: H) -> H:
        handler.operation = Operation(summary=summary, **settings)  # type: ignore[attr-defined]
        return handler

    return say


def operation_of(route: Route) -> Operation:
    """What a route says about itself. Every route of this server does."""
    found = getattr(route.endpoint, "operation", None)
    assert isinstance(found, Operation), f"{route.path} has no @operation"
    return found


@dataclass(frozen=True, slots=True)
class Described:
    """A method on a path, and what it does."""

    method: str
    path: str
    operation: Operation
    doc: str


def described(routes: Sequence[Route]) -> list[Described]:
    """All operations, in the order of their routes."""
    return [
        Described(method, route.path, operation_of(route), inspect.getdoc(route.endpoint) or "")
        for route in routes
        for method in sorted((route.methods or {"GET"}) - {"HEAD"})
    ]
