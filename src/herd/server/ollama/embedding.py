"""`POST /api/embed`, and its older form `POST /api/embeddings`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any

import pydantic
from pydantic import Field, Tag
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UsageError
from herd.providers.base import Service
from herd.server.branches import by_shape
from herd.server.house import caller, house_of
from herd.server.ollama.answers import nanoseconds
from herd.server.ollama.keeping_alive import KeepAlive, unload_after
from herd.server.ollama.names import model_name
from herd.server.ollama.requests import Options
from herd.server.operations import operation
from herd.server.reading import Body, read_body
from herd.server.replies import reply
from herd.server.settings import LIMITS

_Model = Annotated[str, Field(min_length=1, max_length=LIMITS.name_characters)]


class EmbedBody(Body):
    model: _Model
    keep_alive: KeepAlive | None = None
    input: Annotated[
        Annotated[str, Tag("Text")] | Annotated[list[str], Field(max_length=LIMITS.prompts), Tag("List")],
        by_shape(),
    ]
    truncate: bool | None = Field(
        None, description="True cuts texts at the end of the context; otherwise a text that is longer is refused."
    )
    dimensions: Annotated[int, Field(ge=1, le=LIMITS.tokens)] | None = Field(None, description="Only the first numbers, of length 1 again.")
    options: Options | None = Field(None, description="Nothing is drawn for an embedding; the fields are checked.")


class EmbedReply(pydantic.BaseModel):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsBody(Body):
    model: _Model
    keep_alive: KeepAlive | None = None
    prompt: str
    options: Options | None = None


class EmbeddingsReply(pydantic.BaseModel):
    embedding: list[float]


@operation("Turn texts into vectors", body=EmbedBody, reply=EmbedReply, generates=True, tag="Ollama")
async def embed(request: Request) -> Response:
    """A vector of length 1 for each text."""
    body = await read_body(request, EmbedBody)
    texts = [body.input] if isinstance(body.input, str) else body.input
    house = house_of(request)
    began = time.perf_counter()
    async with AsyncExitStack() as held:
        unload_after(house, held, model_name(house, body.model), body.keep_alive)
        service = await held.enter_async_context(house.use(request, model_name(house, body.model)))
        loaded = time.perf_counter()
        inputs: Sequence[str | Sequence[int]] = [await _cut(service, text) for text in texts] if body.truncate else texts
        found = await service.embed(inputs, caller(request)) if inputs else []
    value: dict[str, Any] = {"model": body.model, "embeddings": [_values(each.values, body.dimensions) for each in found]}
    value |= {"total_duration": nanoseconds(time.perf_counter() - began), "load_duration": nanoseconds(loaded - began)}
    return reply({**value, "prompt_eval_count": sum(each.num_tokens for each in found)})


@operation("Turn a text into a vector", body=EmbeddingsBody, reply=EmbeddingsReply, generates=True, tag="Ollama")
async def embeddings(request: Request) -> Response:
    """The older form of `/api/embed`."""
    body = await read_body(request, EmbeddingsBody)
    house = house_of(request)
    async with AsyncExitStack() as held:
        unload_after(house, held, model_name(house, body.model), body.keep_alive)
        service = await held.enter_async_context(house.use(request, model_name(house, body.model)))
        (found,) = await service.embed([body.prompt], caller(request))
    return reply({"embedding": _values(found.values, None)})


async def _cut(service: Service, text: str) -> str | list[int]:
    """A text that fits, or as many of its tokens as do."""
    ids = await service.encode(text)
    return text if len(ids) <= service.facts.context_length else ids[: service.facts.context_length]


def _values(values: Any, dimensions: int | None) -> list[float]:
    if dimensions is None:
        return [float(each) for each in values]
    if dimensions > len(values):
        raise UsageError(f"dimensions is {dimensions}; this model's vectors have {len(values)}.", param="dimensions")
    kept = [float(each) for each in values[:dimensions]]
    length = sum(each * each for each in kept) ** 0.5
    return [each / length for each in kept] if length else kept


ROUTES = (
    Route("/api/embed", embed, methods=["POST"]),
    Route("/api/embeddings", embeddings, methods=["POST"]),
)
