"""`POST /v1/messages`, and the count of its tokens."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.providers.base import ChatRequest, Service
from herd.server.anthropic.answers import PING, CountReply, Events, MessageReply, whole_message
from herd.server.anthropic.requests import Asked, CountRequest, MessagesRequest, pictures_asked_by_address, to_chat
from herd.server.errors import ApiError
from herd.server.fetching import Rules, fetch_picture
from herd.server.house import House, house_of
from herd.server.operations import operation
from herd.server.pouring import AnswerPieces
from herd.server.reading import read_body
from herd.server.replies import reply
from herd.server.settings import LIMITS
from herd.server.streaming import SSE, EventStream

VERSIONS = ("2023-06-01", "2026-10-21")
"""The newer one took `temperature`, `top_k` and `top_p` away, and is the same otherwise; here they are honoured in both."""


@operation("Answer a conversation", body=MessagesRequest, reply=MessageReply, streams=SSE, generates=True, tag="Anthropic")
async def messages(request: Request) -> Response | EventStream:
    """Blocks of text, pictures, calls of tools and their results; the answer is a message, or events that open, fill and close its blocks.

    Without `temperature`, `top_k` or `top_p` the model's publisher's advice is followed, where there is one."""
    check_version(request)
    body = await read_body(request, MessagesRequest)
    house = house_of(request)
    async with AsyncExitStack() as held:
        service = await held.enter_async_context(house.use(request, body.model))
        answer = service.chat(await read_question(house, service, body))
        held.push_async_callback(answer.aclose)
        accepted = await answer.accepted()
        if not body.stream:
            return reply(await whole_message(answer, body.model, body.max_tokens))
        events = Events(body.model, body.max_tokens)
        sent = AnswerPieces(answer, events.write, first=events.begin(accepted))
        return EventStream(sent, held=held.pop_all(), ping=PING, ping_s=house.settings.ping_s)
    raise AssertionError("the block above returns")


@operation("Count a conversation's tokens", body=CountRequest, reply=CountReply, tag="Anthropic")
async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt has that a conversation becomes, with its tools."""
    check_version(request)
    body = await read_body(request, CountRequest)
    house = house_of(request)
    async with house.use(request, body.model) as service:
        return reply({"input_tokens": await service.count(await read_question(house, service, body))})


async def read_question(house: House, service: Service, body: Asked) -> ChatRequest:
    """The question of a body, with the pictures that it names by address."""
    asked = pictures_asked_by_address(body)
    if len(asked) > LIMITS.pictures:
        raise ApiError(400, f"messages names {len(asked)} pictures; at most {LIMITS.pictures} are looked at.", param="messages")
    rules = Rules(hosts=house.settings.image_host)
    found = await asyncio.gather(*(fetch_picture(url, rules) for url in dict.fromkeys(asked)))
    return to_chat(body, service.facts, dict(zip(dict.fromkeys(asked), found, strict=True)))


def check_version(request: Request) -> None:
    """The version of the API that a client speaks; one that says nothing speaks the newest."""
    version = request.headers.get("anthropic-version", VERSIONS[-1])
    if version not in VERSIONS:
        raise ApiError(400, f"anthropic-version is {version!r:.40}; this server speaks {', '.join(VERSIONS)}.", param="anthropic-version")


ROUTES = (
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
)
