"""What Ollama's clients ask about models, and what they may not do to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import did_you_mean
from herd.providers.base import ModelFacts, Offer
from herd.server.errors import ApiError
from herd.server.house import House, house_of, visit_of
from herd.server.ollama.names import model_name
from herd.server.openai.models import offered
from herd.server.operations import operation
from herd.server.reading import Body, read_body
from herd.server.replies import reply
from herd.server.settings import LIMITS
from herd.version import __version__

SPEAKS = "0.13.0"
"""The version of Ollama whose API this is; clients compare it with the one that they need."""
NEVER = "9999-12-31T23:59:59Z"
_HERE = {
    "pull": "Models are not fetched through the server; run `herd pull NAME` beside it.",
    "push": "Models are not published through the server.",
    "create": "Models are not made through the server; `herd convert` and `herd quantize` make them.",
    "copy": "Models are not copied through the server; `herd serve NAME=FOLDER` gives one another name.",
    "delete": "Models are not deleted through the server; `herd remove NAME` does that.",
    "blobs": "Files of models are not uploaded through the server.",
}


class ModelsReply(pydantic.BaseModel):
    models: list[dict[str, Any]]


class VersionReply(pydantic.BaseModel):
    """`version`: of Ollama's API. `herd`: of this program."""

    version: str
    herd: str


class ShowBody(Body):
    HARMLESS: ClassVar[Mapping[str, str]] = {"verbose": "everything that there is to tell is told"}
    REFUSED: ClassVar[Mapping[str, str]] = {
        "template": "a server does not run templates that come with a request.",
        "system": "say it in a message.",
        "options": "send them with a question.",
    }

    model: Annotated[str, Field(min_length=1, max_length=LIMITS.name_characters)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=LIMITS.name_characters)] | None = Field(None, description="Old name of model.")


class ShowReply(pydantic.BaseModel):
    modelfile: str
    parameters: str
    template: str
    details: dict[str, Any]
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


@operation("List the models", reply=ModelsReply, tag="Ollama")
async def tags(request: Request) -> Response:
    """Every model that can answer. Sizes of those that are not loaded are not known and say 0."""
    return reply({"models": [model_value(offer) for offer in _reached(request)]})


@operation("List the models that are loaded", reply=ModelsReply, tag="Ollama")
async def ps(request: Request) -> Response:
    """They stay loaded until their memory is needed, so no time is known at which they go."""
    found = []
    for offer in _reached(request):
        if offer.is_loaded and offer.parent is None:
            context = offer.facts.context_length if offer.facts is not None else 0
            found.append({**model_value(offer), "expires_at": NEVER, "size_vram": 0, "context_length": context})
    return reply({"models": found})


@operation("Tell about a model", body=ShowBody, reply=ShowReply, tag="Ollama")
async def show(request: Request) -> Response:
    """What is known of a model; of one that is not loaded that is little, and asking does not load it."""
    body = await read_body(request, ShowBody)
    name = body.model or body.name
    if name is None:
        raise ApiError(400, "model is missing.", param="model")
    return reply(show_value(_find(request, house_of(request), name)))


@operation("Tell the version", reply=VersionReply, tag="Ollama")
async def version(request: Request) -> Response:
    """Which version of Ollama's API is spoken here, and by which herd."""
    return reply({"version": SPEAKS, "herd": __version__})


@operation("Refused: models are not changed through the server", tag="Ollama")
async def not_here(request: Request) -> Response:
    """Fetching, making, publishing, copying and deleting models is for whoever runs the server, beside it."""
    raise ApiError(400, _HERE[request.url.path.split("/")[2]], code="not_supported")


def _reached(request: Request) -> list[Offer]:
    """The models that this caller's key reaches, with their adapters."""
    return list(offered(house_of(request), visit_of(request)))


def _find(request: Request, house: House, name: str) -> Offer:
    wanted = model_name(house, name)
    offers = _reached(request)
    for offer in offers:
        if offer.name == wanted:
            return offer
    known = did_you_mean(name, [offer.name for offer in offers])
    raise ApiError(404, f"There is no model {name!r:.100} here{known}", param="model", code="model_not_found")


def model_value(offer: Offer) -> dict[str, Any]:
    """A model in a list. Its digest tells it from others of this server; it is no checksum of its files."""
    fingerprint = offer.facts.fingerprint if offer.facts is not None else ""
    digest = hashlib.sha256(f"{offer.name}\n{offer.created}\n{fingerprint}".encode()).hexdigest()
    size = offer.facts.weight_bytes if offer.facts is not None else 0
    name = {"name": offer.name, "model": offer.name}
    return {**name, "modified_at": _time(offer.created), "size": size, "digest": digest, "details": details(offer.facts, offer.parent)}


def details(facts: ModelFacts | None, parent: str | None) -> dict[str, Any]:
    return {
        "parent_model": parent or "",
        "format": facts.sources.get("layout", "") if facts is not None else "",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": size_text(facts.num_parameters) if facts is not None else "",
        "quantization_level": facts.sources.get("dtype", "") if facts is not None else "",
    }


def size_text(count: int) -> str:
    """As in 8.0B or 135.0M; empty where it is not known."""
    for unit, scale in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f}{unit}"
    return str(count) if count else ""


def show_value(offer: Offer) -> dict[str, Any]:
    facts = offer.facts
    info: dict[str, Any] = {"general.architecture": "llama", "general.basename": offer.name}
    if facts is not None:
        info |= {
            "general.parameter_count": facts.num_parameters,
            "llama.context_length": facts.context_length,
            "llama.vocab_size": facts.vocab_size,
        }
    return {
        "modelfile": "",
        "parameters": "\n".join(f"{name} {value:g}" for name, value in (facts.sampling if facts is not None else {}).items()),
        "template": "",
        "details": details(facts, offer.parent),
        "model_info": info,
        "capabilities": capabilities(facts),
        "modified_at": _time(offer.created),
    }


def capabilities(facts: ModelFacts | None) -> list[str]:
    """What a model can do, in Ollama's words; of one that is not loaded only what all can."""
    if facts is None:
        return ["completion"]
    can = {
        "completion": not facts.is_classifier,
        "tools": facts.takes_tools and not facts.is_guard,
        "vision": facts.sees_pictures,
        "embedding": not facts.is_classifier,
    }
    return [name for name, is_so in can.items() if is_so]


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


ROUTES = (
    Route("/api/tags", tags, methods=["GET"]),
    Route("/api/ps", ps, methods=["GET"]),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/version", version, methods=["GET"]),
    *(Route(f"/api/{name}", not_here, methods=["POST"]) for name in ("pull", "push", "create", "copy")),
    Route("/api/delete", not_here, methods=["DELETE"]),
    Route("/api/blobs/{digest}", not_here, methods=["POST"]),
)
