"""`POST /api/chat` and `POST /api/generate`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UsageError
from herd.providers.base import Answer, Service
from herd.server.errors import to_json
from herd.server.house import house_of
from herd.server.ollama.answers import AnswerReply, Lines
from herd.server.ollama.keeping_alive import unload_after
from herd.server.ollama.names import model_name
from herd.server.ollama.requests import Asked, ChatBody, GenerateBody, check, to_chat, to_completion, to_question
from herd.server.operations import operation
from herd.server.pouring import AnswerPieces
from herd.server.reading import read_body
from herd.server.replies import reply
from herd.server.streaming import NDJSON, EventStream


@operation("Answer a conversation", body=ChatBody, reply=AnswerReply, streams=NDJSON, generates=True, tag="Ollama")
async def chat(request: Request) -> Response | EventStream:
    """The answer comes a line at a time unless `stream` is false. A conversation that does not fit the context is refused with both
    numbers and never cut. Where neither the request nor the model's publisher says how to draw, temperature is 0.8, top_k 40, top_p 0.9."""
    body = await read_body(request, ChatBody)

    async def ask(service: Service) -> Answer | None:
        return service.chat(to_chat(body, service.facts)) if body.messages else None

    return await _answered(request, body, ask, is_chat=True)


@operation("Answer or continue a text", body=GenerateBody, reply=AnswerReply, streams=NDJSON, generates=True, tag="Ollama")
async def generate(request: Request) -> Response | EventStream:
    """The prompt is a question in the model's chat format; with `raw` it is continued as it is, and with `suffix` what is missing before
    the suffix is filled in."""
    body = await read_body(request, GenerateBody)

    async def ask(service: Service) -> Answer | None:
        if not body.prompt and not body.images and body.suffix is None:
            return None
        if body.suffix is not None:
            return service.complete(to_completion(body, body.prompt or "", service.facts))
        if body.raw:
            return service.complete(to_completion(body, await _as_it_is(service, body.prompt or ""), service.facts))
        return service.chat(to_question(body, service.facts))

    return await _answered(request, body, ask, is_chat=False)


async def _answered(
    request: Request, body: Asked, ask: Callable[[Service], Awaitable[Answer | None]], *, is_chat: bool
) -> Response | EventStream:
    check(body)
    house = house_of(request)
    began = time.perf_counter()
    async with AsyncExitStack() as held:
        name = model_name(house, body.model)
        goes = unload_after(house, held, name, body.keep_alive)
        service = await held.enter_async_context(house.use(request, name))
        lines = Lines(body.model, is_chat=is_chat, num_top=body.num_top, began=began, load_s=time.perf_counter() - began)
        answer = await ask(service)
        if answer is None:
            loaded = lines.loaded("unload" if goes else "load")
            return Response(to_json(loaded) + b"\n", media_type=NDJSON) if body.is_streamed else reply(loaded)
        held.push_async_callback(answer.aclose)
        await answer.accepted()
        if not body.is_streamed:
            return reply(await lines.whole(answer))
        return EventStream(AnswerPieces(answer, lines.write), media=NDJSON, held=held.pop_all())
    raise AssertionError("the block above returns")


async def _as_it_is(service: Service, prompt: str) -> list[int]:
    """The tokens of a prompt that its author wrote in the model's own format, control tokens included; with the token that begins every
    text, once, whether or not the author wrote it."""
    begin = await service.encode("", bos=None)
    ids = await service.encode(prompt, bos=False, specials=True)
    if not ids:
        raise UsageError("prompt is empty; a text to continue needs at least one character.", param="prompt")
    return ids if ids[: len(begin)] == begin else [*begin, *ids]


ROUTES = (
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/generate", generate, methods=["POST"]),
)
