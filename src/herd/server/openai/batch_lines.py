"""One line of a batch: read, answered by the same handler as a request of its own, and told as a line of a file."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from starlette.datastructures import State
from starlette.requests import Request

from herd.errors import ProviderError
from herd.providers.base import Caller, Priority
from herd.server.callers import Visit
from herd.server.errors import ApiError, api_error, error_value
from herd.server.reading import BIG_BYTES, Body, parse_body
from herd.server.tables import new_id

if TYPE_CHECKING:
    from herd.server.house import House
    from herd.server.keys import Key

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations")
CUSTOM_ID_CHARACTERS = 512
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""How long a line waits before it is tried again, where the server was too busy for it."""
DEATHS_MAX = 1
"""How often a line is tried again that stopped a model's process."""
_LOG = logging.getLogger("herd.server")


class Line(Body):
    """One request of a batch."""

    custom_id: Annotated[str, Field(min_length=1, max_length=CUSTOM_ID_CHARACTERS)]
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations"]
    body: dict[str, Any]


async def read_line(data: bytes, endpoint: str) -> Line:
    """`ApiError` names what is wrong with a line."""
    line = await asyncio.to_thread(parse_body, data, Line) if len(data) > BIG_BYTES else parse_body(data, Line)
    await asyncio.sleep(0)
    if line.url != endpoint:
        raise ApiError(400, f"url is {line.url}; the batch is for {endpoint}.", param="url")
    for name in ("stream", "background"):
        if line.body.get(name):
            raise ApiError(400, f"body.{name} has no place in a batch.", param=f"body.{name}")
    return line


async def answered(house: House, endpoint: str, line: Line, owner: str, key: Key | None) -> tuple[int, str]:
    """A line's status and the line of a file that tells of it. An error that passes (429, 503) is tried again."""
    waits, deaths = list(WAITS_S), 0
    while True:
        request_id = new_id("req_")
        try:
            status, body = 200, await _ask(house, endpoint, line, owner, key, request_id)
            break
        except Exception as problem:
            error = api_error(problem)
            if error.status == 500:
                _LOG.exception("a line of a batch failed")
            deaths += isinstance(problem, ProviderError)
            if error.status in (429, 503) and waits and deaths <= DEATHS_MAX:
                await asyncio.sleep(waits.pop(0))
                continue
            status, body = error.status, error_value(endpoint, error)
            break
    return status, outcome_text(line.custom_id, {"status_code": status, "request_id": request_id, "body": body}, None)


async def _ask(house: House, endpoint: str, line: Line, owner: str, key: Key | None, request_id: str) -> Any:
    """The handler's answer to the line's body, in the name of the batch's owner, at low priority and without a deadline."""
    caller = Caller(owner, house.keys.salt(owner), Priority.LOW)
    scope = {
        "type": "http",
        "method": "POST",
        "path": endpoint,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "app": SimpleNamespace(state=State({"house": house})),
        "herd.visit": Visit(request_id=request_id, caller=caller, key=key, route="/v1/batches"),
        "herd.body": json.dumps(line.body).encode(),
    }
    response = await handlers()[endpoint](Request(scope))
    return json.loads(response.body)


def handlers() -> dict[str, Callable[[Request], Awaitable[Any]]]:
    """The handlers of the endpoints that batches may use."""
    from herd.server.openai import chat, completions, embeddings, moderations, responses

    routes = (*chat.ROUTES, *completions.ROUTES, *embeddings.ROUTES, *responses.ROUTES, *moderations.ROUTES)
    return {route.path: route.endpoint for route in routes if route.path in ENDPOINTS}


def outcome_text(custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> str:
    """What became of a line, as a line of a file."""
    value = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
