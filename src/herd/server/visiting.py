"""The door: which requests come in at all. Names of hosts, origins of pages, keys, and how often.

Before a request is known to be allowed, nothing of it is read but its head.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from starlette.responses import Response

from herd.errors import did_you_mean
from herd.providers.base import Caller
from herd.server.callers import LOCAL, Visit
from herd.server.errors import ApiError
from herd.server.settings import is_loopback

if TYPE_CHECKING:
    from herd.server.house import House
    from herd.server.keys import Key
    from herd.server.operations import Operation

Scope = MutableMapping[str, Any]
_is_loopback = functools.lru_cache(maxsize=256)(is_loopback)
ALWAYS = ("/health", "/ready", "/metrics")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = b"GET, POST, DELETE, OPTIONS"
_DEADLINE = b"x-deadline-s"


class Door:
    """Lets requests in, or says why not."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._origins = frozenset(each.lower().rstrip("/") for each in house.settings.allow_origin)
        self._hosts = frozenset(each.lower() for each in house.settings.allow_host)
        self._is_loopback = house.settings.is_loopback
        self._local = Caller(LOCAL, house.keys.salt(LOCAL))

    def visit(self, scope: Scope) -> Visit:
        """A request as a visit; its id is the client's own, if that is one."""
        own = _header(scope, b"x-request-id")
        request_id = own if own is not None and _ID.fullmatch(own) else f"req_{secrets.token_hex(12)}"
        return Visit(request_id=request_id, caller=self._local)

    def open(self, scope: Scope, visit: Visit, operation: Operation | None) -> None:
        """`ApiError` for what may not come in. Afterwards the visit knows its key."""
        self._check_host(scope)
        self._check_origin(scope)
        if operation is None or not operation.is_open:
            self._check_key(scope, visit)
        if self._house.is_draining and scope["path"] not in ALWAYS:
            raise ApiError(503, "The server is stopping; it finishes what runs and takes nothing new.", retry_after_s=5.0)
        visit.deadline_s = self._deadline(scope)
        if scope["path"] not in ALWAYS:
            self._house.admission.check_rate(visit.key)

    def is_preflight(self, scope: Scope) -> bool:
        return scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method") is not None

    def preflight(self, scope: Scope) -> Response:
        """The answer to a browser that asks whether a page may ask."""
        self._check_host(scope)
        self._check_origin(scope)
        asked = _header(scope, b"access-control-request-headers") or ""
        names = ", ".join(name for each in asked.split(",") if re.fullmatch(r"[A-Za-z0-9-]{1,64}", name := each.strip()))
        headers = {"access-control-allow-methods": _METHODS.decode(), "access-control-max-age": "600"}
        return Response(status_code=204, headers={**headers, "access-control-allow-headers": names} if names else headers)

    def headers_for(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """What a page of an allowed origin needs to read the response. Credentials of browsers are never among it."""
        origin = _header(scope, b"origin")
        if origin is None or not self._is_allowed(origin):
            return []
        shown = b"*" if "*" in self._origins else origin.encode("latin-1")
        return [
            (b"access-control-allow-origin", shown),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"vary", b"origin"),
        ]

    def check_query(self, scope: Scope, operation: Operation) -> None:
        """Parameters of the address that an operation does not have are refused by name."""
        known = [name for name, _, _ in operation.query]
        for name, _ in parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True):
            if name not in known:
                raise ApiError(
                    400, f"The address has a parameter {name!r:.80}, which is not known here{did_you_mean(name, known)}", param=name[:80]
                )

    def _check_host(self, scope: Scope) -> None:
        """On loopback only names of this computer are answered: another name is a web page that had its own name point here."""
        if not self._is_loopback and not self._hosts:
            return
        name = _host_name(_header(scope, b"host") or "")
        if name in self._hosts or (self._is_loopback and _is_loopback(name)):
            return
        self._house.metrics.refused.labels("host").inc()
        raise ApiError(421, f"This server does not answer under the name {name!r:.100}; --allow-host adds one.", code="wrong_host")

    def _check_origin(self, scope: Scope) -> None:
        origin = _header(scope, b"origin")
        if origin is None or self._is_allowed(origin) or self._is_own(scope, origin):
            return
        self._house.metrics.refused.labels("origin").inc()
        raise ApiError(403, f"Pages of {origin!r:.100} may not use this server; --allow-origin adds one.", code="origin_not_allowed")

    def _is_allowed(self, origin: str) -> bool:
        return "*" in self._origins or (origin.lower() != "null" and origin.lower() in self._origins)

    def _is_own(self, scope: Scope, origin: str) -> bool:
        """Whether the page came from this server itself, perhaps through a proxy that speaks TLS."""
        host = (_header(scope, b"host") or "").lower()
        return bool(host) and origin.lower() in (f"http://{host}", f"https://{host}")

    def _check_key(self, scope: Scope, visit: Visit) -> None:
        if not self._house.settings.need_key:
            return
        texts = _presented(scope)
        found = self._house.keys.find(next(iter(texts), "")) if len(texts) <= 1 else None
        if found is None:
            self._house.metrics.refused.labels("key").inc()
            raise ApiError(401, _key_message(texts), code="invalid_api_key")
        self._enter(visit, found)

    def _enter(self, visit: Visit, key: Key) -> None:
        visit.key = key
        visit.caller = Caller(key.id, self._house.keys.salt(key.id))

    def _deadline(self, scope: Scope) -> float:
        """Seconds for this request: the server's, or less if the client says so in `x-deadline-s`."""
        most, text = self._house.settings.deadline_s, _header(scope, _DEADLINE)
        if text is None:
            return most
        try:
            asked = float(json.loads(text, parse_constant=str))
        except (ValueError, TypeError, RecursionError):
            asked = 0.0
        if not 0 < asked <= 10**6:
            raise ApiError(
                400, f"The header x-deadline-s is {text!r:.60}; expected seconds above 0 and at most 10^6.", param="x-deadline-s"
            )
        return min(most, asked)


def _key_message(texts: set[str]) -> str:
    if not texts:
        return "This server needs a key: Authorization: Bearer KEY, or x-api-key: KEY."
    return "The key is not valid here." if len(texts) == 1 else "The request brings two different keys; send one."


def _presented(scope: Scope) -> set[str]:
    """The keys that a request brings, in either place that clients put them."""
    found = set()
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, text = value.decode("latin-1").partition(" ")
            found.add(text.strip() if kind.lower() == "bearer" else "")
        elif name == b"x-api-key":
            found.add(value.decode("latin-1").strip())
    return found


def _header(scope: Scope, name: bytes) -> str | None:
    for each, value in scope["headers"]:
        if each == name:
            found: str = value.decode("latin-1")
            return found
    return None


@functools.lru_cache(maxsize=256)
def _host_name(host: str) -> str:
    """The name in a Host header, without its port, in lower case; empty for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "").lower() if parts.path == "" and parts.username is None else ""
    except ValueError:
        return ""
