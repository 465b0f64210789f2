"""Complete answers as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
from starlette.responses import Response

from herd.server.errors import to_json


def reply(
    value: pydantic.BaseModel | Mapping[str, Any] | list[Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response. Fields of a model that were not set are left out."""
    plain = value.model_dump(mode="json", by_alias=True, exclude_unset=True) if isinstance(value, pydantic.BaseModel) else value
    return Response(to_json(plain), status, dict(headers or {}), "application/json")
