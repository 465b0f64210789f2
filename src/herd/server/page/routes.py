"""What a browser gets: the files beside this module, and a plan as a piece of a page.

The pages ask the same routes as any client. They are given out without a key, as they hold nothing; what they ask for is not.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from html import escape
from importlib.resources import files
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import UsageError
from herd.family.catalogue import find, releases
from herd.planner import units
from herd.planner.devices import devices, find_device
from herd.planner.formats import names as format_names
from herd.planner.memory import Load, cache_format
from herd.planner.page import STYLE, body
from herd.planner.plan import Plan, answer, ask
from herd.providers.base import Offer
from herd.server.house import house_of
from herd.server.operations import operation
from herd.server.replies import reply

T = TypeVar("T")
MOST_USERS, MOST_TOKENS = 10**9, 10**8
"""More than anybody has; a plan for more would hold numbers that nobody can read."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_TEXT = {"type": "string", "maxLength": 100}
_QUERY = (
    ("model", _TEXT, "name of a release, as `herd models` lists it"),
    ("quant", _TEXT, "how weights are stored: bf16, fp8, q8, q4, q4_k_m ... (bf16)"),
    ("cache", _TEXT, "how keys and values are stored: f16, f32, q8_0, q4_0 (f16)"),
    ("context", _TEXT, "longest conversation in tokens, at most the model's, such as 128K (8192)"),
    ("users", _TEXT, f"users who are answered at the same time, at most {MOST_USERS:,} (1)"),
    ("prompt_tokens", _TEXT, "what a user's conversation holds (1024)"),
    ("answer_tokens", _TEXT, "length of an answer (256)"),
    ("device", _TEXT, "only this device (all)"),
)


@lru_cache(maxsize=16)
def _file(name: str) -> bytes:
    return files("herd.server.page").joinpath(name).read_bytes()


def _page(name: str, badge: bytes = b"") -> Response:
    """One of the files; `badge` goes to the end of its header."""
    kind = _TYPES[name.rpartition(".")[2]]
    content = _file(name).replace(b"</header>", badge + b"</header>", 1)
    return Response(content, headers={"content-security-policy": POLICY, "cache-control": "no-cache"}, media_type=kind)


def badges(offers: Iterable[Offer]) -> tuple[str, ...]:
    """What a server has to show that answers with these models, each once."""
    return tuple(dict.fromkeys(offer.terms.badge for offer in offers if offer.terms is not None and offer.terms.badge is not None))


@operation("A page to try the models", media="text/html", is_open=True, tag="Pages")
async def home(request: Request) -> Response:
    """Chats with the models of this server, in a browser. Shows what their licences want shown."""
    shown = "".join(f'<p class="badge">{escape(badge)}</p>' for badge in badges(house_of(request).pool.offers()))
    return _page("index.html", shown.encode())


@operation("A page to plan with", media="text/html", query=_QUERY, is_open=True, tag="Pages")
async def plan_page(request: Request) -> Response:
    """What a model takes, where it fits, how fast it answers there and what that costs, with sliders."""
    return _page("plan.html")


@operation("A part of the pages", media="text/javascript", is_open=True, tag="Pages")
async def part(request: Request) -> Response:
    """Their scripts."""
    return _page(request.url.path.rpartition("/")[2])


@operation("How the pages look", media="text/css", is_open=True, tag="Pages")
async def page_style(request: Request) -> Response:
    """The style of all pages."""
    return _page("page.css")


@operation("How plans look", media="text/css", is_open=True, tag="Pages")
async def plan_style(request: Request) -> Response:
    """The style of a plan, the same that `herd plan --html` writes."""
    return Response(STYLE, headers={"cache-control": "no-cache"}, media_type="text/css")


@operation("What can be planned for", is_open=True, tag="Pages")
async def plan_choices(request: Request) -> Response:
    """Releases, formats of weights and devices that a plan may name."""
    released = [each for each in releases().values() if each.is_released and each.context_length and "text" in each.outputs]
    return reply(
        {
            "models": [{"name": each.name, "context": each.context_length} for each in released],
            "quants": list(format_names()),
            "devices": [{"name": name, "title": device.title} for name, device in devices().items()],
        }
    )


@operation("A plan", media="text/html", query=_QUERY, is_open=True, tag="Pages")
async def plan_answer(request: Request) -> Response:
    """The plan that `herd plan` makes, as a piece of HTML. Nothing is loaded, fetched or kept."""
    found = await asyncio.to_thread(_plan, dict(request.query_params))
    return Response(body(found), headers={"content-security-policy": POLICY}, media_type="text/html")


def _plan(asked: Mapping[str, str]) -> Plan:
    """The plan for what an address asks. `UsageError` for what is missing or cannot be."""
    if not asked.get("model"):
        raise UsageError("model is missing; it must be the name of a release.", param="model")
    release = _named("model", lambda: find(asked["model"]))
    if not release.is_released:
        raise UsageError(f"{release.name} was announced and never released; no plan can be made for it.", param="model")
    most = release.context_length or 8192
    context = _count(asked, "context", str(min(8192, most)), most)
    load = Load(
        _count(asked, "users", "1", MOST_USERS),
        context,
        min(_count(asked, "prompt_tokens", "1024", MOST_TOKENS), context),
        _count(asked, "answer_tokens", "256", MOST_TOKENS),
        0,
    )
    chosen = [_named("device", lambda: find_device(asked["device"]))] if asked.get("device") else list(devices().values())
    cache = _named("cache", lambda: cache_format(asked.get("cache") or "f16"))
    return answer(ask(release, quant=asked.get("quant") or "bf16", cache=cache, load=load, devices=chosen, today=datetime.date.today()))


def _count(asked: Mapping[str, str], name: str, usual: str, most: int) -> int:
    found = _named(name, lambda: units.count(asked.get(name) or usual, name))
    if not 1 <= found <= most:
        raise UsageError(f"{name} is {found:,}; it must be from 1 to {most:,}.", param=name)
    return found


def _named(param: str, read: Callable[[], T]) -> T:
    """What is read of an address; what is wrong with it names the parameter."""
    try:
        return read()
    except UsageError as problem:
        raise UsageError(str(problem), param=param) from problem


ROUTES = (
    Route("/", home, methods=["GET"]),
    Route("/plan", plan_page, methods=["GET"]),
    *(Route(f"/page/{name}", part, methods=["GET"]) for name in ("chat.js", "plan.js")),
    Route("/page/page.css", page_style, methods=["GET"]),
    Route("/page/plan.css", plan_style, methods=["GET"]),
    Route("/plan/choices", plan_choices, methods=["GET"]),
    Route("/plan/answer", plan_answer, methods=["GET"]),
)
