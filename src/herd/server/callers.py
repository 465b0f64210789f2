"""Who asks: a visit is one request's way through the server."""

from __future__ import annotations

import time
from dataclasses import field
from typing import TYPE_CHECKING

from herd.providers.base import Caller, Priority
from herd.records import dataclass
from herd.server.errors import ApiError

if TYPE_CHECKING:
    from herd.server.keys import Key

LOCAL = "local"
"""The name of whoever needs no key."""


@dataclass(slots=True, kw_only=True)
class Visit:
    """One request.

    request_id   told to the client in `x-request-id`, and in the log
    caller       on whose behalf models work for it
    key          the key that it brought, if keys are needed here
    route        the path as its route is written, for measures
    began        `time.perf_counter()` when its head was read
    deadline_s   seconds, from then on, after which it is given up
    """

    request_id: str
    caller: Caller
    key: Key | None = None
    route: str = ""
    began: float = field(default_factory=time.perf_counter)
    deadline_s: float | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def check_model(self, model: str) -> None:
        """`ApiError` 404 if this visit's key does not reach the model; the same as for a name that does not exist."""
        if self.key is not None and not self.key.reaches(model):
            raise ApiError(404, f"There is no model {model!r:.100} for this key.", param="model", code="model_not_found")

    def in_the_background(self) -> Visit:
        """The same caller's work at low priority, without a deadline: what a batch does."""
        caller = Caller(self.caller.name, self.caller.salt, Priority.LOW)
        return Visit(request_id=self.request_id, caller=caller, key=self.key, route=self.route)
