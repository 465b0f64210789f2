"""`/v1/models`: what this server can answer with, and what one request may ask of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UnknownModel, did_you_mean
from herd.providers.base import ModelFacts, Offer
from herd.server.anthropic.models import PAGE, asks_for_anthropic, model_value, models_page
from herd.server.callers import Visit
from herd.server.house import House, house_of, visit_of
from herd.server.openai.shapes import ModelList, ModelShape
from herd.server.operations import operation
from herd.server.replies import reply
from herd.server.settings import LIMITS, Settings


@operation("List the models", reply=ModelList, query=PAGE)
async def list_models(request: Request) -> Response:
    """Every model that the caller may use, those with adapters as `model:adapter`. A request with the header `anthropic-version` is
    answered with a page in Anthropic's shape."""
    if asks_for_anthropic(request):
        return reply(models_page(list(_offers(request)), request))
    return reply({"object": "list", "data": [_value(each, house_of(request).settings) for each in _offers(request)]})


@operation("Describe a model", reply=ModelShape)
async def get_model(request: Request) -> Response:
    """One model."""
    name = request.path_params["model"]
    offers = {each.name: each for each in _offers(request)}
    if name not in offers:
        raise UnknownModel(f"There is no model {name!r:.100} here{did_you_mean(name, offers)}", param="model")
    if asks_for_anthropic(request):
        return reply(model_value(offers[name]))
    return reply(_value(offers[name], house_of(request).settings))


def _offers(request: Request) -> Iterator[Offer]:
    yield from offered(house_of(request), visit_of(request))


def offered(house: House, visit: Visit) -> Iterator[Offer]:
    """The models that a caller may use, with the adapters of those that are loaded."""
    given = list(house.pool.offers())
    names = {each.name for each in given}
    for offer in given:
        yield from _reachable(offer, visit)
        for adapter in offer.facts.adapters if offer.facts is not None else ():
            name = f"{offer.name}:{adapter}"
            if name not in names:
                made = Offer(name=name, created=offer.created, is_loaded=True, facts=offer.facts, parent=offer.name, terms=offer.terms)
                yield from _reachable(made, visit)


def _reachable(offer: Offer, visit: Visit) -> Iterator[Offer]:
    if visit.key is None or visit.key.reaches(offer.name):
        yield offer


def _value(offer: Offer, settings: Settings) -> dict[str, Any]:
    limits = {**asdict(LIMITS), "body_bytes": settings.max_body_bytes, "seconds": int(settings.deadline_s)}
    if offer.facts is not None:
        limits["context"] = offer.facts.context_length
    return {
        "id": offer.name,
        "object": "model",
        "created": offer.created,
        "owned_by": "herd",
        "parent": offer.parent,
        "root": offer.parent or offer.name,
        "loaded": offer.is_loaded,
        "licence": None if offer.terms is None else asdict(offer.terms),
        "limits": limits,
        "details": None if offer.facts is None else _details(offer.facts),
    }


def _details(facts: ModelFacts) -> dict[str, Any]:
    return {
        "context_length": facts.context_length,
        "vocab_size": facts.vocab_size,
        "num_parameters": facts.num_parameters,
        "weight_bytes": facts.weight_bytes,
        "fingerprint": facts.fingerprint,
        "chat_format": facts.chat_format,
        "sees_pictures": facts.sees_pictures,
        "is_guard": facts.is_guard,
        "recommended_sampling": dict(facts.sampling),
        "adapters": list(facts.adapters),
    }


ROUTES = (
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
)
