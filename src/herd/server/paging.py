"""Lists in pages, as OpenAI's clients read them: `limit` objects in an order, those behind the one named by `after`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from herd.records import dataclass
from herd.server.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request

ID_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Page:
    """What part of a list is asked for."""

    after: str | None
    limit: int
    newest_first: bool


def page_query(limit: int, most: int) -> tuple[tuple[str, dict[str, Any], str], ...]:
    """The parameters of an operation that answers in pages."""
    return (
        ("after", {"type": "string", "maxLength": ID_CHARACTERS}, "The last object of the page before."),
        ("limit", {"type": "integer", "minimum": 1, "maximum": most, "default": limit}, "Objects in a page."),
        ("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}, "Oldest (asc) or newest (desc) first."),
    )


def read_page(request: Request, *, limit: int, most: int) -> Page:
    """What a request asks for. `ApiError` names the parameter that is wrong."""
    query = request.query_params
    for name in query:
        if len(query.getlist(name)) > 1:
            raise ApiError(400, f"{name} is given twice.", param=name)
    text = query.get("limit", str(limit))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= most):
        raise ApiError(400, f"limit is {text!r:.40}; expected a whole number from 1 to {most}.", param="limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"order is {order!r:.40}; expected asc or desc.", param="order")
    after = query.get("after")
    if after is not None and len(after) > ID_CHARACTERS:
        raise ApiError(400, f"after has {len(after)} characters; an id has at most {ID_CHARACTERS}.", param="after")
    return Page(after, int(text), order == "desc")


def list_value(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page, of `limit` + 1 objects that were looked for."""
    shown = list(found[:limit])
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, **ends, "has_more": len(found) > limit}
