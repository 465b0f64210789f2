"""What a client sees when something is wrong: one kind of error inside, and the shape of each API outside.

    HerdError --api_error--> ApiError --error_body(path)--> OpenAI's, Anthropic's or Ollama's JSON

A message here was written by us for the person who made the request. Texts of libraries, and names of our files, stay inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from herd.errors import Busy, CapacityError, ContextExceeded, DeadlinePassed, HerdError, ProviderError, UnknownModel, UsageError, lack

INVALID = "invalid_request_error"
SERVER = "server_error"
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_CODES = {401: "invalid_api_key", 413: "request_too_large", 415: "unsupported_media_type", 429: "rate_limit_exceeded", 503: "overloaded"}
RETRY_S = 1.0
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class ApiError(Exception):
    """A request that is answered with an error.

    status          of HTTP
    type, code      as OpenAI's clients know them; `type` None: as `status` says
    param           dotted path of the field that is meant
    retry_after_s   when asking again makes sense
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or (INVALID if status < 500 else SERVER)
        self.param = param
        self.code = code or _CODES.get(status)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, rounded up, as HTTP has it. Where asking again is no use, the official clients, which would ask
        twice more, are told so in the way that they know."""
        if self.status == 504:
            return {"x-should-retry": "false"}
        return {} if self.retry_after_s is None else {"retry-after": str(max(1, -int(-self.retry_after_s // 1)))}


def api_error(error: BaseException) -> ApiError:
    """The error as a client may see it. What is no `HerdError` is a bug of ours, and tells nothing."""
    match error:
        case ApiError():
            return error
        case UnknownModel():
            return ApiError(404, str(error), param=error.param or "model", code="model_not_found")
        case ContextExceeded():
            return ApiError(400, str(error), param=error.param, code="context_length_exceeded")
        case UsageError():
            return ApiError(error.http_status, str(error), param=error.param)
        case Busy():
            return ApiError(429, str(error), code="rate_limit_exceeded", retry_after_s=error.retry_after_s)
        case DeadlinePassed():
            return ApiError(504, str(error), code="deadline_exceeded")
        case CapacityError():
            return ApiError(503, str(error), retry_after_s=RETRY_S)
        case ProviderError():
            return ApiError(503, "The model's process stopped while it answered; it is started again.", retry_after_s=RETRY_S)
        case HerdError():
            return ApiError(500, "The model's files cannot be used; the server's log says why.", code="model_broken")
        case _:
            lacking = lack(error)
            return ApiError(500, "The server met a bug; its log has the details.") if lacking is None else api_error(lacking)


def surface(path: str) -> str:
    """Whose API a path belongs to: "anthropic", "ollama" or "openai"."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"


def error_value(path: str, error: ApiError, request_id: str = "") -> dict[str, Any]:
    """The JSON object that tells a client of this path about an error."""
    match surface(path):
        case "anthropic":
            kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
            return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id or None}
        case "ollama":
            return {"error": error.message}
        case _:
            return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_body(path: str, error: ApiError, request_id: str = "") -> bytes:
    return to_json(error_value(path, error, request_id))


def error_event(path: str, error: ApiError, request_id: str = "") -> bytes:
    """An error in the middle of a stream, which already began with 200."""
    body = error_body(path, error, request_id)
    match surface(path):
        case "anthropic":
            return b"event: error\ndata: " + body + b"\n\n"
        case "ollama":
            return body + b"\n"
        case _:
            return b"data: " + body + b"\n\n"


def to_json(value: Mapping[str, Any] | list[Any] | str) -> bytes:
    """Compact JSON, UTF-8. Half characters, which JSON has no bytes for, become replacement characters."""
    return _ENCODER.encode(value).encode("utf-8", "replace")
