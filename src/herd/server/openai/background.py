"""Answers of `/v1/responses` that are kept, and those that are made without their client waiting."""

from __future__ import annotations

import asyncio
import copy
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from herd.errors import HerdError
from herd.records import dataclass
from herd.server.errors import ApiError, api_error

if TYPE_CHECKING:
    from herd.providers.base import Answer
    from herd.server.house import House
    from herd.server.openai.response_events import Building
    from herd.server.tables import Tables

KIND = "response"
OPEN = "response_open"
"""An empty object beside each answer that is being made in the background, so that a start finds those that were cut off."""
UNFINISHED = ("queued", "in_progress")


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that is stored: its owner, the response, and the items that it was asked with."""

    house: House
    owner: str
    value: dict[str, Any]
    items: list[dict[str, Any]]

    async def put(self) -> None:
        """Stores the answer as it is now. Where its owner's share is used up, the owner's oldest answers make room."""
        body: dict[str, Any] = copy.deepcopy({"response": self.value, "input": self.items})
        owner, key, expires = self.owner, self.value["id"], self.house.keeping.expires()

        def write(tables: Tables) -> None:
            is_open = body["response"]["status"] in UNFINISHED
            if tables.find(owner, OPEN, key) is not None:
                tables.replace(owner, KIND, key, body)
                if not is_open:
                    tables.remove(owner, OPEN, key)
            else:
                tables.put(owner, KIND, key, body, expires=expires, displaces=True)
                if is_open:
                    tables.put(owner, OPEN, key, {})

        await self.house.keeping.store.write(write)


async def begin(kept: Kept, answer: Answer, building: Building, held: AsyncExitStack) -> dict[str, Any]:
    """Goes on with an answer after its request has ended; returns the response as it is now. `held` is left when it is over."""
    keeping, key = kept.house.keeping, kept.value["id"]
    async with held:
        keeping.store  # noqa: B018  (opens it)
        if not keeping.is_owner:
            raise ApiError(503, "Another server works on what is kept in this folder; ask it, or without background.", retry_after_s=10.0)
        with keeping.reserved(kept.owner, key):
            building.begin()
            await kept.put()
            first = copy.deepcopy(kept.value)
            keeping.spawn(kept.owner, key, _go_on(kept, answer, building, held.pop_all()))
        return first


async def _go_on(kept: Kept, answer: Answer, building: Building, held: AsyncExitStack) -> None:
    async with held:
        try:
            async for events in answer:
                building.push(events)
        except (HerdError, ApiError) as problem:
            building.fail(api_error(problem))
        if not building.is_over:
            building.fail(ApiError(503, "The answer ended before it was complete."))
        await asyncio.shield(kept.put())


async def resume(house: House) -> None:
    """Answers that were being made when a server ended have failed; they say so from now on."""
    if not await house.keeping.store.read(lambda tables: tables.of_everybody(OPEN)):
        return

    def end(tables: Tables) -> None:
        for each in tables.of_everybody(OPEN):
            if house.keeping.is_running(each.owner, each.id):
                continue
            tables.remove(each.owner, OPEN, each.id)
            found = tables.find(each.owner, KIND, each.id)
            if found is not None and found.body["response"]["status"] in UNFINISHED:
                error = {"code": "server_error", "message": "The server ended before the answer was complete."}
                found.body["response"] |= {"status": "failed", "error": error}
                tables.replace(found.owner, KIND, found.id, found.body)

    await house.keeping.store.write(end)
