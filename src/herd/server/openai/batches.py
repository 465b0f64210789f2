"""`/v1/batches`: a file of requests that are answered when nobody else needs the model, and that survive a restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.server.dates import now, shown
from herd.server.house import caller, house_of
from herd.server.openai import batch_work
from herd.server.openai.batch_work import ENDPOINTS, KIND, OVER, WINDOW_S
from herd.server.openai.fields import MetadataKey, MetadataValue
from herd.server.openai.files import BATCH_OPEN
from herd.server.openai.kept import check_file, check_open
from herd.server.operations import operation
from herd.server.paging import list_value, page_query, read_page
from herd.server.reading import Body, read_body
from herd.server.replies import reply
from herd.server.settings import LIMITS
from herd.server.tables import Tables, new_id

LIST_DEFAULT, LIST_MOST = 20, 100
OPEN_MOST = 100


class ExpiresAfter(Body):
    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchBody(Body):
    """The body of `POST /v1/batches`."""

    HARMLESS: ClassVar[Mapping[str, str]] = {}

    input_file_id: Annotated[str, Field(min_length=1, max_length=200)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=LIMITS.metadata)] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchReply(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    id: str
    object: Literal["batch"]
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
    output_file_id: str | None
    error_file_id: str | None
    request_counts: dict[str, int]


class BatchesReply(pydantic.BaseModel):
    object: Literal["list"]
    data: list[BatchReply]
    first_id: str | None
    last_id: str | None
    has_more: bool


@operation("Answer a file of requests", body=BatchBody, reply=BatchReply)
async def create_batch(request: Request) -> Response:
    """Every line of the file is a request: `custom_id`, `method` POST, `url` (the endpoint), `body`. Lines are answered at low priority,
    several at once; what is done stays done when the server stops, and no line is told twice. After 24 hours what is left has expired.
    Answers are lines of a file in the order of the input; lines that failed are in a file of their own."""
    body = await read_body(request, BatchBody)
    house, owner = house_of(request), caller(request).name
    assert body.endpoint in ENDPOINTS
    key = new_id("batch_")
    value = {
        "id": key,
        "object": "batch",
        "endpoint": body.endpoint,
        "model": None,
        "errors": None,
        "input_file_id": body.input_file_id,
        "completion_window": body.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": shown(),
        "expires_at": now() + WINDOW_S,
        **dict.fromkeys(
            f"{name}_at" for name in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        ),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": body.metadata or {},
    }
    seconds = body.output_expires_after.seconds if body.output_expires_after is not None else None

    def put(tables: Tables) -> None:
        check_file(tables, owner, body.input_file_id, "batch", "input_file_id")
        check_open(tables, owner, BATCH_OPEN, OPEN_MOST, "batches")
        tables.put(owner, KIND, key, {"batch": value, "output_seconds": seconds}, expires=house.keeping.expires(days=60))
        tables.put(owner, BATCH_OPEN, key, {"input_file_id": body.input_file_id})

    await house.keeping.store.write(put)
    if house.keeping.is_owner:
        batch_work.start(house, owner, key)
    return reply(value)


@operation("List batches", reply=BatchesReply, query=page_query(LIST_DEFAULT, LIST_MOST))
async def list_batches(request: Request) -> Response:
    """The caller's batches, in pages."""
    page, owner = read_page(request, limit=LIST_DEFAULT, most=LIST_MOST), caller(request).name

    def find(tables: Tables) -> list[dict[str, Any]]:
        kept = tables.page(owner, KIND, after=page.after, limit=page.limit + 1, newest_first=page.newest_first)
        return [batch_work.with_counts(tables, each.body["batch"]) for each in kept]

    return reply(list_value(await house_of(request).keeping.store.read(find), page.limit))


@operation("Describe a batch", reply=BatchReply)
async def get_batch(request: Request) -> Response:
    """How far it is, and where its answers are."""
    owner, key = caller(request).name, request.path_params["id"]
    store = house_of(request).keeping.store
    return reply(await store.read(lambda tables: batch_work.with_counts(tables, tables.get(owner, KIND, key)["batch"])))


@operation("Cancel a batch", reply=BatchReply)
async def cancel_batch(request: Request) -> Response:
    """What is answered by then can be fetched. One that is over stays as it is."""
    house, owner, key = house_of(request), caller(request).name, request.path_params["id"]

    def mark(tables: Tables) -> dict[str, Any]:
        body = tables.get(owner, KIND, key)
        batch: dict[str, Any] = body["batch"]
        if batch["status"] not in (*OVER, "cancelling", "finalizing"):
            batch |= {"status": "cancelling", "cancelling_at": shown()}
            tables.replace(owner, KIND, key, body)
        return batch_work.with_counts(tables, batch)

    batch = await house.keeping.store.write(mark)
    if batch["status"] == "cancelling" and house.keeping.is_owner:
        await house.keeping.cancel(owner, key)
        batch_work.start(house, owner, key)
    return reply(batch)


ROUTES = (
    Route("/v1/batches", create_batch, methods=["POST"]),
    Route("/v1/batches", list_batches, methods=["GET"]),
    Route("/v1/batches/{id}", get_batch, methods=["GET"]),
    Route("/v1/batches/{id}/cancel", cancel_batch, methods=["POST"]),
)
