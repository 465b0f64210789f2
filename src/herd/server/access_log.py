"""One line for each request: what was asked for, by whom, and how it went. No prompts, answers or keys; nothing that breaks a line."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from herd.server.callers import Visit

LONGEST = 200
_BREAKS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_LOG = logging.getLogger("herd.server.requests")


class _OneLine(logging.Formatter):
    """Time, level and message on one line; whatever could break it is shown as an escape. A bug's traceback follows on its own lines."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%SZ"
    default_msec_format = None

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _BREAKS.sub(lambda found: f"\\x{ord(found[0]):02x}", super().formatMessage(record))


def start_log(stream: TextIO, is_quiet: bool) -> None:
    """Has all of this program's lines written to `stream`; quiet: only those about problems."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("herd")
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING if is_quiet else logging.INFO)
    log.propagate = False


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
