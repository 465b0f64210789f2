"""`keep_alive`: how long a model stays loaded after an answer.

Models here stay until their memory is needed by another, which no time changes; only 0, "not at all", asks for something else. It is done
where the server is its user's own. Where keys are needed others use the model too, and nobody may take it from them.
"""

from __future__ import annotations

import math
import re
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from herd.errors import UnknownModel
from herd.server.errors import ApiError

if TYPE_CHECKING:
    from herd.server.house import House

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([+-]?)((?:[0-9]{1,12}(?:\.[0-9]{0,9})?(?:ns|us|µs|ms|s|m|h))+|[0-9]{1,12}(?:\.[0-9]{0,9})?)")
_PART = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)?")


def _checked(value: float | str) -> float | str:
    if isinstance(value, str) and not _DURATION.fullmatch(value):
        raise PydanticCustomError("herd_duration", "Is neither a number of seconds nor a time such as 5m or 1h30m")
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("herd_duration", "Is no number of seconds")
    return value


KeepAlive = Annotated[
    int | float | Annotated[str, Field(max_length=64)],
    AfterValidator(_checked),
    Field(description="0 unloads the model after the answer, where no keys are needed; every other time changes nothing."),
]


def is_zero(keep_alive: float | str | None) -> bool:
    """Whether the model is to go at once."""
    if isinstance(keep_alive, str):
        return sum(float(number) * _UNITS[unit or "s"] for number, unit in _PART.findall(keep_alive)) == 0.0
    return keep_alive is not None and keep_alive == 0


def unload_after(house: House, held: AsyncExitStack, model: str, keep_alive: float | str | None) -> bool:
    """Whether the model goes when `held` is left; enter its use afterwards. One that others still use stays. `ApiError` 403 where it
    may not be asked."""
    if not is_zero(keep_alive):
        return False
    if house.settings.need_key:
        said = "keep_alive 0 unloads a model, and others use those of this server; leave it out."
        raise ApiError(403, said, param="keep_alive", code="not_allowed")

    async def unload() -> None:
        with suppress(UnknownModel):
            await house.pool.put_away(model)

    held.push_async_callback(unload)
    return True
