"""A small surface of its own for tests of the core: a chat that streams or not, a body with every kind of field, and an upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Any, ClassVar

import pydantic
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.providers.base import Answer, ChatRequest, Failed, Text
from herd.sampling.params import SamplingParams
from herd.server.errors import to_json
from herd.server.health import ROUTES as HEALTH
from herd.server.house import house_of
from herd.server.operations import operation
from herd.server.reading import Body, read_body
from herd.server.replies import reply
from herd.server.streaming import DONE, EventStream
from herd.text.messages import Message, Role


class Options(Body):
    include_usage: bool = False


class Part(Body):
    kind: str
    text: Annotated[str, pydantic.Field(max_length=100)] = ""


class Ask(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {"user": "who asks is told by the key"}
    REFUSED: ClassVar[Mapping[str, str]] = {"audio": "answers are text."}

    model: str = "fake"
    prompt: Annotated[str, pydantic.Field(max_length=1_000_000)]
    n: Annotated[int, pydantic.Field(ge=1, le=128)] = 1
    temperature: Annotated[float, pydantic.Field(ge=0, le=100)] = 1.0
    stop: str | list[str] | None = None
    stream: bool = False
    options: Options = Options()
    parts: Annotated[list[Part], pydantic.Field(default_factory=list)]


@operation("Asks", body=Ask, streams="text/event-stream", generates=True)
async def ask(request: Request) -> Response | EventStream:
    """Streams words, or gives them at once."""
    body = await read_body(request, Ask)
    house = house_of(request)
    async with AsyncExitStack() as held:
        service = await held.enter_async_context(house.use(request, body.model))
        answer = service.chat(ChatRequest(messages=[Message(Role.USER, body.prompt)], sampling=SamplingParams()))
        held.push_async_callback(answer.aclose)
        await answer.accepted()
        if body.stream:
            return EventStream(pieces(answer), held=held.pop_all(), ping_s=house.settings.ping_s)
        return reply({"text": "".join([piece async for piece in texts(answer)])})
    raise AssertionError


async def texts(answer: Answer) -> AsyncIterator[str]:
    async for events in answer:
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Text):
                yield event.text


async def pieces(answer: Answer) -> AsyncIterator[bytes]:
    async for text in texts(answer):
        yield b"data: " + to_json({"text": text}) + b"\n\n"
    yield DONE


@operation("Takes a file", uploads=True)
async def upload(request: Request) -> Response:
    """Counts what comes."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return reply({"size": size})


@operation("Fails")
async def fail(request: Request) -> Response:
    """A bug."""
    raise RuntimeError("secret /etc/path 0x7f00")


@operation("Waits", query=(("seconds", {"type": "number"}, "how long"),))
async def wait(request: Request) -> Response:
    """Answers after a while."""
    await asyncio.sleep(float(request.query_params.get("seconds", "0.2")))
    return reply({"status": "ok"})


ROUTES: tuple[Route, ...] = (
    *HEALTH,
    Route("/v1/ask", ask, methods=["POST"]),
    Route("/v1/messages/ask", ask, methods=["POST"]),
    Route("/api/ask", ask, methods=["POST"]),
    Route("/v1/upload", upload, methods=["POST"]),
    Route("/v1/fail", fail, methods=["GET"]),
    Route("/v1/wait", wait, methods=["GET"]),
)


def body(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Hi", **fields}
