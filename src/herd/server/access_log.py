"""One line for each request: what was asked for, by whom, and how it went. No prompts, answers or keys; nothing that breaks a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.server.callers import Visit

LONGEST = 200
_LOG = logging.getLogger("herd.server.requests")


def log_request(scope: Mapping[str, Any], visit: Visit, status: int, seconds: float) -> None:
    if not _LOG.isEnabledFor(logging.INFO):
        return
    client = scope.get("client")
    line = {
        "id": visit.request_id,
        "client": client[0] if client else None,
        "caller": visit.caller.name,
        "method": scope["method"][:16],
        "path": scope["path"][:LONGEST],
        "status": status,
        "ms": round(seconds * 1000, 1),
        "prompt_tokens": visit.prompt_tokens,
        "answer_tokens": visit.answer_tokens,
    }
    _LOG.info("%s", json.dumps(line))
