"""LoRA adapters that come and go while the server runs. Only folders inside the one that the operator named can be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from herd.errors import FileProblem, UnknownModel, UsageError
from herd.server.errors import ApiError
from herd.server.house import House, house_of, visit_of
from herd.server.operations import operation
from herd.server.reading import Body, read_body
from herd.server.replies import reply
from herd.server.settings import LIMITS

_Name = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=LIMITS.name_characters)]


class AdapterBody(Body):
    model: Annotated[_Name, pydantic.Field(description="The model that it belongs to.")]
    name: Annotated[_Name, pydantic.Field(description="The name to ask for it by: `model:name`.")]
    folder: Annotated[_Name, pydantic.Field(description="Its folder (PEFT's layout) inside the server's `adapter_folder`.")]


class AdapterShape(pydantic.BaseModel):
    id: str
    object: str = "adapter"
    model: str
    name: str
    deleted: bool | None = None


@operation("Load a LoRA adapter", body=AdapterBody, reply=AdapterShape, status=201, tag="Server")
async def add_adapter(request: Request) -> Response:
    """From now on requests may ask for the model `model:name`. What runs does not notice. Needs the setting `adapter_folder`."""
    house, asked = house_of(request), await read_body(request, AdapterBody)
    folder = _folder(house, asked.folder)
    visit_of(request).check_model(asked.model)
    try:
        await house.pool.add_adapter(asked.model, asked.name, str(folder))
    except FileProblem:
        # What is wrong with a file is for those who can see it.
        raise ApiError(400, f"The folder {asked.folder!r:.100} holds no LoRA adapter for {asked.model}.", param="folder") from None
    return reply({"id": f"{asked.model}:{asked.name}", "object": "adapter", "model": asked.model, "name": asked.name}, 201)


@operation("Unload a LoRA adapter", reply=AdapterShape, tag="Server")
async def remove_adapter(request: Request) -> Response:
    """Requests that it is answering finish; new ones are refused. Needs the setting `adapter_folder`."""
    house = house_of(request)
    _opened(house)
    whole = request.path_params["id"]
    model, _, name = whole.rpartition(":")
    if not model:
        raise UnknownModel(f"There is no adapter {whole!r:.100} here; adapters are named model:adapter.", param="id")
    visit_of(request).check_model(whole)
    await house.pool.remove_adapter(model, name)
    return reply({"id": whole, "object": "adapter", "model": model, "name": name, "deleted": True})


def _opened(house: House) -> Path:
    """Where adapters may come from. `ApiError` 403 where the operator named no folder."""
    folder = house.settings.adapter_folder
    if folder is None:
        raise ApiError(403, "Adapters cannot be changed over HTTP here; `herd serve --adapter-folder FOLDER` allows it.")
    return folder


def _folder(house: House, name: str) -> Path:
    """A folder directly inside the operator's. `UsageError` for any other, also by a link."""
    within = _opened(house).resolve()
    found = within / name
    if any(character in name for character in "/\\:\0") or name in (".", "..") or found.resolve().parent != within or not found.is_dir():
        raise UsageError(f"There is no folder {name!r:.100} among the server's adapters.", param="folder")
    return found


ROUTES = (
    Route("/v1/adapters", add_adapter, methods=["POST"]),
    Route("/v1/adapters/{id:path}", remove_adapter, methods=["DELETE"]),
)
