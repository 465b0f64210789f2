"""`/openapi.json`, and `/docs`: the same for people, in one page that fetches nothing and runs no script."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.server.description import describe
from herd.server.errors import to_json
from herd.server.operations import operation

if TYPE_CHECKING:
    from herd.server.app import App

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
code, pre { font: 14px/1.4 ui-monospace, monospace } pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; border-radius: 6px }
details { border: 1px solid #ddd; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem } summary { cursor: pointer }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; border-bottom: 1px solid #eee; padding: .2rem .6rem .2rem 0 }
td { vertical-align: top } .method { display: inline-block; min-width: 4.5rem; font-weight: 600 } .quiet { color: #666 }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } pre { background: #222 } .quiet { color: #999 }
  details { border-color: #444 } td, th { border-color: #333 }
}
"""


@operation("What this server can do, for programs", tag="Server")
async def openapi(request: Request) -> Response:
    """The OpenAPI 3.1 description of every route."""
    return Response(to_json(description_of(request.app)), media_type="application/json")


@operation("What this server can do, for people", media="text/html", tag="Server")
async def docs(request: Request) -> Response:
    """All routes with their fields. The page needs no network and no script."""
    page = "".join(_page(description_of(request.app)))
    return Response(page, headers={"content-security-policy": POLICY}, media_type="text/html")


def description_of(app: App) -> dict[str, Any]:
    """The description of an application, made once."""
    found = getattr(app.state, "description", None)
    if found is None:
        found = app.state.description = describe(app.routes)
    return dict(found)


def _page(description: dict[str, Any]) -> Iterator[str]:
    yield "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    yield f"<title>herd</title><style>{STYLE}</style>"
    yield f"<h1>herd {escape(description['info']['version'])}</h1><p>{escape(description['info']['description'])} "
    yield "The same for programs: <a href=openapi.json>openapi.json</a>.</p>"
    groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in description["paths"].items():
        for method, each in methods.items():
            groups.setdefault(each["tags"][0], []).append((method.upper(), path, each))
    schemas = description["components"]["schemas"]
    for tag, members in groups.items():
        yield f"<h2>{escape(tag)}</h2>"
        for method, path, each in members:
            yield f"<details><summary><span class=method>{method}</span> <code>{escape(path)}</code> {escape(each['summary'])}</summary>"
            yield f"<p>{escape(each['description'])}</p>"
            yield from _fields(each, schemas)
            yield "</details>"


def _fields(each: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    content = each.get("requestBody", {}).get("content", {}).get("application/json")
    rows = [
        (f"?{found['name']}", found["schema"], found.get("description", ""))
        for found in each.get("parameters", ())
        if found["in"] == "query"
    ]
    if content is not None:
        schema = schemas.get(content["schema"].get("$ref", "").rpartition("/")[2], content["schema"])
        required = schema.get("required", [])
        rows += [(name, field, "required" if name in required else "") for name, field in schema.get("properties", {}).items()]
    if rows:
        yield "<table><tr><th>field<th>takes<th></tr>"
        for name, field, note in rows:
            said = note or field.get("description", "")
            yield f"<tr><td><code>{escape(name)}</code><td>{escape(takes(field))}<td class=quiet>{escape(said)}</tr>"
        yield "</table>"


def takes(schema: dict[str, Any]) -> str:
    """What values a field takes, in words."""
    from herd.server.endpoints import takes as said

    return said(schema).replace("`", "")


ROUTES = (
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/docs", docs, methods=["GET"]),
)
