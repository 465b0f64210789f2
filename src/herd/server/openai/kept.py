"""What the kept objects of `/v1` (files, batches, jobs, responses) have in common: found by their path, begun over a file, worked on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from herd.server.errors import ApiError
from herd.server.house import caller, house_of
from herd.server.tables import NotThere, Tables

if TYPE_CHECKING:
    from herd.server.house import House

FILE = "file"


async def found_by(request: Request, kind: str) -> dict[str, Any]:
    """The body of the caller's object that the path names."""
    owner, key = caller(request).name, request.path_params["id"]
    return await house_of(request).keeping.store.read(lambda tables: tables.get(owner, kind, key))


def check_file(tables: Tables, owner: str, key: str, purpose: str, param: str) -> None:
    """`ApiError` for a file that the caller does not have, or brought for something else."""
    try:
        file = tables.get(owner, FILE, key)
    except NotThere as problem:
        raise ApiError(400, str(problem), param=param) from None
    if file["purpose"] != purpose:
        raise ApiError(400, f"The file was brought for {file['purpose']}; expected one for {purpose}.", param=param)


def check_open(tables: Tables, owner: str, kind: str, most: int, what: str) -> None:
    """`ApiError` where the caller has as many that are not over as one may have."""
    if len(tables.page(owner, kind, after=None, limit=most, newest_first=False)) >= most:
        raise ApiError(429, f"{most} {what} of this key are not over yet; more are not taken.", retry_after_s=60.0)


class KeptWork:
    """One object being worked on, in a task of its own."""

    def __init__(self, house: House, owner: str, key: str) -> None:
        self._house = house
        self._store = house.keeping.store
        self._owner = owner
        self._key = key
