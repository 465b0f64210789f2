"""Answers of `/v1/responses` that are made without their client waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.server.house import House
    from herd.server.tables import Tables

KIND = "response"
UNFINISHED = ("queued", "in_progress")


async def resume(house: House) -> None:
    """Answers that were being made when the server ended have failed; they say so from now on."""

    def end(tables: Tables) -> None:
        for kept in tables.of_everybody(KIND):
            response: dict[str, Any] = kept.body["response"]
            if response["status"] in UNFINISHED:
                error = {"code": "server_error", "message": "The server ended before the answer was complete."}
                kept.body["response"] = {**response, "status": "failed", "error": error}
                tables.replace(kept.owner, KIND, kept.id, kept.body)

    await house.keeping.store.write(end)
