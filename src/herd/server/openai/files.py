"""`/v1/files`: what batches read and write, kept for the key that brought it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import pydantic
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import did_you_mean
from herd.server.dates import now, shown
from herd.server.errors import ApiError
from herd.server.house import House, caller, house_of
from herd.server.openai.kept import FILE as KIND
from herd.server.openai.kept import found_by
from herd.server.operations import operation
from herd.server.paging import list_value, page_query, read_page
from herd.server.replies import reply
from herd.server.streaming import EventStream
from herd.server.tables import Tables, new_id
from herd.server.uploading import Form, read_form

UPLOAD = "upload"
"""A file of which not all has come; one that was cut off by the end of its server goes within a day."""
BATCH_OPEN = "batch_open"
"""An object beside each batch that is not over; its body names the file that it reads."""
BATCH_FILE_DAYS = 30
PURPOSES = ("batch", "fine-tune", "evals", "user_data")
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
LIST_DEFAULT, LIST_MOST = 100, 10_000
READ_PIECES = 4
BINARY = "application/octet-stream"


class FileReply(pydantic.BaseModel):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]


class FilesReply(pydantic.BaseModel):
    object: Literal["list"]
    data: list[FileReply]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedReply(pydantic.BaseModel):
    id: str
    object: Literal["file"]
    deleted: bool


_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "contentMediaType": BINARY, "minLength": 1},
        "purpose": {"enum": list(PURPOSES)},
        "expires_after[anchor]": {"const": "created_at", "description": "Needed with expires_after[seconds]."},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
    "additionalProperties": False,
}


@operation("Upload a file", reply=FileReply, uploads=True, form=_FORM)
async def create_file(request: Request) -> Response:
    """A form with `file` and `purpose` (batch, fine-tune, evals or user_data), and, if it is to go by itself, `expires_after[anchor]`
    (created_at) and `expires_after[seconds]`. Files of batches go after 30 days. Only the key that brought a file finds it."""
    house, owner = house_of(request), caller(request).name
    key, size, form = new_id("file-"), 0, Form()
    store = house.keeping.store
    await store.write(lambda tables: tables.put(owner, UPLOAD, key, {}, expires=house.keeping.expires(days=1)))
    try:
        async for form, piece in read_form(request, house.settings.max_upload_bytes):  # noqa: B007
            size += len(piece)
            await store.write(lambda tables, piece=piece: tables.append(owner, key, piece))  # type: ignore[misc]
        value = _file_value(key, form, size)
        await store.write(lambda tables: tables.rename(owner, UPLOAD, key, KIND, value, expires=value["expires_at"]))
    except BaseException as problem:
        await store.write(lambda tables: tables.remove(owner, UPLOAD, key), erase=True)
        if isinstance(problem, ClientDisconnect):
            raise ApiError(499, "The client left.") from None
        raise
    return reply(value)


def file_value(key: str, filename: str, purpose: str, size: int, expires: int | None) -> dict[str, Any]:
    made = {"id": key, "object": "file", "bytes": size, "created_at": shown(), "expires_at": expires}
    return {**made, "filename": filename, "purpose": purpose, "status": "processed", "status_details": None}


def _file_value(key: str, form: Form, size: int) -> dict[str, Any]:
    """`ApiError` names the field of the form that is wrong."""
    for name in form.fields:
        if name not in _FIELDS:
            raise ApiError(400, f"{name[:80]} is not a field of this form{did_you_mean(name, _FIELDS)}", param=name[:80])
    purpose = form.fields.get("purpose")
    if purpose not in PURPOSES:
        found = "missing" if purpose is None else repr(purpose[:40])
        raise ApiError(400, f"purpose is {found}; expected one of {', '.join(PURPOSES)}.", param="purpose")
    if not size:
        raise ApiError(400, "The file is empty.", param="file")
    assert form.filename is not None
    return file_value(key, form.filename, purpose, size, _expires(form, purpose))


def _expires(form: Form, purpose: str) -> int | None:
    anchor, text = form.fields.get("expires_after[anchor]"), form.fields.get("expires_after[seconds]")
    if anchor is None and text is None:
        return now() + BATCH_FILE_DAYS * 86_400 if purpose == "batch" else None
    if anchor != "created_at":
        raise ApiError(400, "expires_after[anchor] has to be created_at.", param="expires_after[anchor]")
    if text is None or not (text.isascii() and text.isdigit() and 3600 <= int(text[:12]) <= 2_592_000):
        raise ApiError(400, "expires_after[seconds] has to be a whole number from 3600 to 2592000.", param="expires_after[seconds]")
    return now() + int(text)


_LIST_QUERY = (
    *page_query(LIST_DEFAULT, LIST_MOST),
    ("purpose", {"type": "string", "maxLength": 40}, "Only files that were brought, or made, for this."),
)


@operation("List files", reply=FilesReply, query=_LIST_QUERY)
async def list_files(request: Request) -> Response:
    """The caller's files, in pages."""
    page, owner = read_page(request, limit=LIST_DEFAULT, most=LIST_MOST), caller(request).name
    purpose = request.query_params.get("purpose")

    def find(tables: Tables) -> list[dict[str, Any]]:
        kept = tables.page(owner, KIND, after=page.after, limit=page.limit + 1, newest_first=page.newest_first, purpose=purpose)
        return [each.body for each in kept]

    return reply(list_value(await house_of(request).keeping.store.read(find), page.limit))


@operation("Describe a file", reply=FileReply)
async def get_file(request: Request) -> Response:
    """Its name, size and purpose."""
    return reply(await found_by(request, KIND))


@operation("Delete a file", reply=DeletedReply)
async def delete_file(request: Request) -> Response:
    """It is gone from the disk when this returns. A file that a batch still reads stays."""
    owner, key = caller(request).name, request.path_params["id"]

    def remove(tables: Tables) -> None:
        tables.get(owner, KIND, key)
        for each in tables.page(owner, BATCH_OPEN, after=None, limit=10_000, newest_first=False):
            if each.body["input_file_id"] == key:
                raise ApiError(400, f"The batch {each.id} reads this file; cancel it, or wait until it is over.", code="file_in_use")
        tables.remove(owner, KIND, key)

    await house_of(request).keeping.store.write(remove, erase=True)
    return reply({"id": key, "object": "file", "deleted": True})


@operation("Download a file", media=BINARY)
async def get_content(request: Request) -> EventStream:
    """Its bytes, as they were brought or made."""
    value = await found_by(request, KIND)
    headers = {"content-length": str(value["bytes"]), "content-disposition": f'attachment; filename="{value["id"]}"'}
    return EventStream(content(house_of(request), value["id"]), media=BINARY, headers=headers)


async def content(house: House, key: str) -> AsyncIterator[bytes]:
    """A file's bytes, a few pieces at a time. Whether the caller may have them is for the caller of this."""
    first = 0
    while pieces := await house.keeping.store.read(lambda tables, first=first: tables.pieces(key, first, READ_PIECES)):  # type: ignore[misc]
        for piece in pieces:
            yield piece
        first += len(pieces)


ROUTES = (
    Route("/v1/files", create_file, methods=["POST"]),
    Route("/v1/files", list_files, methods=["GET"]),
    Route("/v1/files/{id}", get_file, methods=["GET"]),
    Route("/v1/files/{id}", delete_file, methods=["DELETE"]),
    Route("/v1/files/{id}/content", get_content, methods=["GET"]),
)
