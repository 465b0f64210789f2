"""Whether the server lives, whether it can answer, and how it does."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.server.errors import to_json
from herd.server.house import house_of
from herd.server.metrics import CONTENT_TYPE
from herd.server.operations import operation


@operation("Whether the server lives", is_open=True, tag="Server")
async def health(request: Request) -> Response:
    """Answers 200 as long as the web process works, also while models load, and without a key."""
    return Response(to_json({"status": "ok"}), media_type="application/json")


@operation("Whether the server can answer", tag="Server")
async def ready(request: Request) -> Response:
    """200 when the models that were named at the start are loaded; 503 before that, and from the moment the server is told to stop."""
    house = house_of(request)
    status = "stopping" if house.is_draining else "ready" if house.pool.is_ready else "loading"
    headers = {} if status == "ready" else {"retry-after": "1"}
    return Response(to_json({"status": status}), 200 if status == "ready" else 503, headers, "application/json")


@operation("Measures for Prometheus", media=CONTENT_TYPE, tag="Server")
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(house_of(request).metrics.text(), headers={"content-type": CONTENT_TYPE})


ROUTES = (
    Route("/health", health, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
)
