"""The list of models in Anthropic's shape: the same address as OpenAI's, told apart by the header that Anthropic's clients send."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from herd.providers.base import Offer
from herd.server.errors import ApiError

LIMIT_MAX = 1000
_ID = {"type": "string", "maxLength": 512}
PAGE: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("limit", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}, "Models in a page; with Anthropic's clients only."),
    ("after_id", _ID, "The last model of the page before; with Anthropic's clients only."),
    ("before_id", _ID, "The first model of the page after; with Anthropic's clients only."),
)


def asks_for_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def model_value(offer: Offer) -> dict[str, Any]:
    created = datetime.fromtimestamp(offer.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    value: dict[str, Any] = {"type": "model", "id": offer.name, "display_name": offer.name, "created_at": created, "lifecycle": "active"}
    if offer.facts is not None:
        value |= {"max_input_tokens": offer.facts.context_length, "max_tokens": offer.facts.context_length}
    return value


def models_page(offers: Sequence[Offer], request: Request) -> dict[str, Any]:
    """A page of the list: `limit` of them behind `after_id`, or before `before_id`."""
    limit = _limit(request.query_params.get("limit", "20"))
    after, before = request.query_params.get("after_id"), request.query_params.get("before_id")
    names = [offer.name for offer in offers]
    start, end = 0, len(offers)
    if after is not None:
        start = _place(names, after, "after_id") + 1
    if before is not None:
        end = _place(names, before, "before_id")
    found = list(offers[start:end])
    page = found[-limit:] if before is not None and after is None else found[:limit]
    return {
        "data": [model_value(offer) for offer in page],
        "has_more": len(page) < len(found),
        "first_id": page[0].name if page else None,
        "last_id": page[-1].name if page else None,
    }


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= LIMIT_MAX):
        raise ApiError(400, f"limit is {text!r:.40}; expected a whole number from 1 to {LIMIT_MAX}.", param="limit")
    return int(text)


def _place(names: list[str], name: str, param: str) -> int:
    if name not in names:
        raise ApiError(400, f"{param} is {name!r:.100}, which is no model of the list.", param=param)
    return names.index(name)
