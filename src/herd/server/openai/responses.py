"""`/v1/responses`: conversations that the server keeps, if it may: an answer goes on from an earlier one by its id."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal

import pydantic
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import HerdError, UsageError
from herd.providers.base import Answer, ChatRequest, Failed, Service
from herd.server.dates import shown
from herd.server.errors import ApiError, api_error
from herd.server.fetching import Rules
from herd.server.house import House, caller, house_of, visit_of
from herd.server.openai import background
from herd.server.openai.background import KIND, OPEN, UNFINISHED, Kept
from herd.server.openai.kept import found_by
from herd.server.openai.messages import with_pictures
from herd.server.openai.response_bodies import Asked, CountBody, ResponseBody, to_chat
from herd.server.openai.response_events import Building
from herd.server.openai.response_items import AnyItem, ItemList, listed, stored_value, to_messages
from herd.server.operations import operation
from herd.server.paging import list_value, page_query, read_page
from herd.server.pouring import AnswerPieces
from herd.server.reading import read_body, validate
from herd.server.replies import reply
from herd.server.settings import LIMITS
from herd.server.streaming import SSE, EventStream
from herd.server.tables import NotThere, Tables, new_id, not_there
from herd.text.messages import Message, Role

ITEMS_DEFAULT, ITEMS_MOST = 20, 100


class ResponseReply(pydantic.BaseModel):
    """An answer. `dropped_messages`: how many of the oldest were left out by truncation. `seed`: what it was drawn with."""

    model_config = pydantic.ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    previous_response_id: str | None
    usage: dict[str, Any] | None
    dropped_messages: int


class ItemsReply(pydantic.BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CountReply(pydantic.BaseModel):
    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedReply(pydantic.BaseModel):
    id: str
    object: str
    deleted: bool


@operation("Answer, going on from an earlier answer if asked", body=ResponseBody, reply=ResponseReply, streams=SSE, generates=True)
async def create_response(request: Request) -> Response | EventStream:
    """Items in, items out: messages, calls of functions, their results. The answer is kept unless `store` is false, for its key only, and
    can be gone on from by `previous_response_id`; instructions are not carried on. With `background` the request returns at once, and the
    answer is made at low priority."""
    body = await read_body(request, ResponseBody)
    house = house_of(request)
    body.check(house.settings.keep_days)
    owner = caller(request).name
    is_kept = body.store is not False and house.settings.keep_days > 0
    if is_kept:
        house.keeping.store  # noqa: B018  (what cannot be kept is not begun)
    items = listed(body.input or [])
    earlier = await _earlier(house, owner, body.previous_response_id)
    visit = visit_of(request).in_the_background() if body.background else visit_of(request)
    async with AsyncExitStack() as held:
        service = await held.enter_async_context(house.use(visit, body.model))
        question, dropped = await _fitted(house, service, body, [*earlier, *items])
        value = _first_value(body, question, is_kept, dropped)
        kept = Kept(house, owner, value, [stored_value(item) for item in items]) if is_kept else None
        building = Building(value, num_top=body.num_top, is_streamed=bool(body.stream))
        answer = service.chat(question)
        held.push_async_callback(answer.aclose)
        await answer.accepted()
        if body.background:
            assert kept is not None
            held.enter_context(house.admission.place(visit))
            return reply(await background.begin(kept, answer, building, held.pop_all()))
        if body.stream:
            return EventStream(_pieces(answer, building, kept), held=held.pop_all(), ping_s=house.settings.ping_s)
        async for events in answer:
            if isinstance(events[-1], Failed):
                raise events[-1].error
            building.push(events)
        if kept is not None:
            await kept.put()
    return reply(value)


def _pieces(answer: Answer, building: Building, kept: Kept | None) -> AnswerPieces:
    """The events of a stream. The answer is kept before its last event says that it is complete."""

    async def last() -> bytes:
        failed = b""
        try:
            if kept is not None:
                await kept.put()
        except (HerdError, ApiError) as problem:
            failed = building.fail(api_error(problem))
        return failed + building.last()

    return AnswerPieces(answer, building.push, first=building.begin(), last=last)


@operation("Fetch a stored answer", reply=ResponseReply)
async def get_response(request: Request) -> Response:
    """The answer as it is now; one that is made in the background says how far it is."""
    return reply((await found_by(request, KIND))["response"])


@operation("Delete a stored answer", reply=DeletedReply)
async def delete_response(request: Request) -> Response:
    """It is gone from the disk when this returns; if it is still being made, that ends."""
    house, owner, key = house_of(request), caller(request).name, request.path_params["id"]
    await found_by(request, KIND)
    await house.keeping.cancel(owner, key)

    def remove(tables: Tables) -> None:
        tables.remove(owner, KIND, key)
        if tables.find(owner, OPEN, key) is not None:
            tables.remove(owner, OPEN, key)

    await house.keeping.store.write(remove, erase=True)
    return reply({"id": key, "object": "response", "deleted": True})


@operation("List the items that an answer was asked with", reply=ItemsReply, query=page_query(ITEMS_DEFAULT, ITEMS_MOST))
async def list_input_items(request: Request) -> Response:
    """The items of the request itself; those of earlier answers are listed with these."""
    page = read_page(request, limit=ITEMS_DEFAULT, most=ITEMS_MOST)
    items = (await found_by(request, KIND))["input"]
    ordered = items[::-1] if page.newest_first else items
    if page.after is not None:
        places = [index for index, item in enumerate(ordered) if item["id"] == page.after]
        if not places:
            raise not_there("item", page.after, param="after")
        ordered = ordered[places[0] + 1 :]
    return reply(list_value(ordered[: page.limit + 1], page.limit))


@operation("Cancel an answer that is made in the background", reply=ResponseReply)
async def cancel_response(request: Request) -> Response:
    """One that is over stays as it is."""
    house, owner, key = house_of(request), caller(request).name, request.path_params["id"]
    found = (await found_by(request, KIND))["response"]
    if not found["background"]:
        raise ApiError(400, "Only answers that are made in the background can be cancelled; end the others by closing their connection.")
    await house.keeping.cancel(owner, key)

    def end(tables: Tables) -> dict[str, Any]:
        body = tables.get(owner, KIND, key)
        if body["response"]["status"] in UNFINISHED:
            body["response"]["status"] = "cancelled"
            tables.replace(owner, KIND, key, body)
            tables.remove(owner, OPEN, key)
        response: dict[str, Any] = body["response"]
        return response

    return reply(await house.keeping.store.write(end))


@operation("Count the tokens of what would be asked", body=CountBody, reply=CountReply)
async def count_input(request: Request) -> Response:
    """How many tokens the prompt has, with instructions, tools and what was said before."""
    body = await read_body(request, CountBody)
    house = house_of(request)
    items = [*await _earlier(house, caller(request).name, body.previous_response_id), *listed(body.input or [])]
    async with house.use(request, body.model) as service:
        question, _ = await _fitted(house, service, body, items)
        return reply({"object": "response.input_tokens", "input_tokens": await service.count(question)})


async def _earlier(house: House, owner: str, key: str | None) -> list[AnyItem]:
    """All items of the answers that an answer goes on from, oldest first. `ApiError` 400 for one that is not there or not complete."""
    if key is None:
        return []

    def walk(tables: Tables) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        next_key: str | None = key
        while next_key is not None:
            body = tables.get(owner, KIND, next_key)
            response = body["response"]
            if response["status"] not in ("completed", "incomplete"):
                raise UsageError(f"The answer {next_key!r:.80} is {response['status']}; expected one that is complete.", param=param)
            found[:0] = [*body["input"], *response["output"]]
            if len(found) > LIMITS.messages:
                raise UsageError(f"The conversation has more than {LIMITS.messages} items.", param=param)
            next_key = response["previous_response_id"]
        return found

    param = "previous_response_id"
    try:
        found = await house.keeping.store.read(walk)
    except NotThere as problem:
        raise ApiError(400, str(problem), param=param, code="previous_response_not_found") from None
    return list(validate({"items": found}, ItemList).items)


async def _fitted(house: House, service: Service, body: Asked, items: Sequence[AnyItem]) -> tuple[ChatRequest, int]:
    """The question, and how many messages were left out so that it fits. Only whole turns go, the oldest first, and never the last."""
    messages = await with_pictures(to_messages(items), Rules(hosts=house.settings.image_host), "input")
    first = [Message(Role.SYSTEM, body.instructions)] if body.instructions else []
    if not messages:
        raise UsageError("input is empty; an answer needs something to answer.", param="input")
    whole = to_chat(body, [*first, *messages], service.facts)
    if body.truncation != "auto":
        return whole, 0
    most = service.facts.context_length
    wanted = body.max_output_tokens if isinstance(body, ResponseBody) else None
    room = min(wanted or most // 4, most // 2)
    starts = [index for index, message in enumerate(messages) if message.role is Role.USER and index] or [0]
    system = [message for message in messages if message.role is Role.SYSTEM]

    def without(dropped: int) -> ChatRequest:
        kept = [message for message in messages[starts[dropped - 1] :] if message.role is not Role.SYSTEM]
        return to_chat(body, [*first, *system, *kept], service.facts)

    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        question = whole if middle == 0 else without(middle)
        low, high = (low, middle) if await service.count(question) + room <= most else (middle + 1, high)
    question = whole if low == 0 else without(low)
    return question, len(whole.messages) - len(question.messages)


def _first_value(body: ResponseBody, question: ChatRequest, is_kept: bool, dropped: int) -> dict[str, Any]:
    """The response before anything was said."""
    text_format = body.text.format if body.text is not None else None
    choice = body.tool_choice
    tools = [{"description": None, "parameters": None, "strict": None, **tool.model_dump(exclude_unset=True)} for tool in body.tools or ()]
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": shown(),
        "completed_at": None,
        "status": "queued",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": is_kept,
        "temperature": question.sampling.temperature,
        "text": {"format": {"type": "text"} if text_format is None else text_format.model_dump(by_alias=True, exclude_unset=True)},
        "tool_choice": choice.model_dump() if isinstance(choice, pydantic.BaseModel) else choice or "auto",
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": question.sampling.top_p,
        "truncation": body.truncation or "disabled",
        "dropped_messages": dropped,
        "usage": None,
    }


ROUTES = (
    Route("/v1/responses", create_response, methods=["POST"]),
    Route("/v1/responses/input_tokens", count_input, methods=["POST"]),
    Route("/v1/responses/{id}", get_response, methods=["GET"]),
    Route("/v1/responses/{id}", delete_response, methods=["DELETE"]),
    Route("/v1/responses/{id}/input_items", list_input_items, methods=["GET"]),
    Route("/v1/responses/{id}/cancel", cancel_response, methods=["POST"]),
)
