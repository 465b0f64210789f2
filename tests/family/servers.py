"""HTTP servers of this machine: one that serves files and misbehaves on request, and one that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """What a server has and how it misbehaves. `requests` records method, path and Range of what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int] = field(default_factory=list)
    """The next requests for bodies are cut after so many bytes, one entry each."""
    answers: list[int] = field(default_factory=list)
    """The next requests are answered with these status codes."""
    pause_s: float = 0.0
    ignores_range: bool = False
    lies_about_range: bool = False
    has_etag: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def ranges(self) -> list[str | None]:
        return [span for method, _, span in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._serve(is_head=True)

    def do_GET(self) -> None:
        self._serve(is_head=False)

    def _serve(self, *, is_head: bool) -> None:
        behaviour = self.behaviour
        behaviour.requests.append((self.command, self.path, self.headers.get("Range")))
        if behaviour.answers:
            self._answer(behaviour.answers.pop(0), b"")
            return
        found = self._find()
        if found is not None:
            self._send_file(found, is_head)

    def _find(self) -> bytes | None:
        data = self.behaviour.files.get(self.path.partition("?")[0])
        if data is None:
            self._answer(404, b"")
        return data

    def _more_headers(self, data: bytes) -> dict[str, str]:
        return {}

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, data: bytes, is_head: bool) -> None:
        behaviour, etag = self.behaviour, f'"{hashlib.sha256(data).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        is_same = self.headers.get("If-Range", etag) == etag
        begin = int(asked[1]) if asked and is_same and not behaviour.ignores_range else 0
        is_part = bool(asked) and is_same and not behaviour.ignores_range
        if is_part and begin >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(206 if is_part else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        if is_part:
            told = begin + 1 if behaviour.lies_about_range else begin
            self.send_header("Content-Range", f"bytes {told}-{len(data) - 1}/{len(data)}")
        if behaviour.has_etag:
            self.send_header("ETag", etag)
        for name, value in {**behaviour.headers, **self._more_headers(data)}.items():
            self.send_header(name, value)
        self.end_headers()
        if not is_head:
            self._send_body(data[begin:])

    def _send_body(self, data: bytes) -> None:
        cut = self.behaviour.cut_after.pop(0) if self.behaviour.cut_after else len(data)
        try:
            for at in range(0, min(cut, len(data)), 1 << 16):
                self.wfile.write(data[at : min(at + (1 << 16), cut)])
                self.wfile.flush()
                time.sleep(self.behaviour.pause_s)
        except OSError:
            pass
        self.close_connection = True


@contextmanager
def serving(behaviour: Behaviour, handler: type[_Handler] = _Handler) -> Iterator[str]:
    """The address of a server that behaves so."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"behaviour": behaviour}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Hub(Behaviour):
    """One repository on a hub. `gate` is the token that may read it; None: everybody."""

    repository: str = "meta-llama/Llama-3.2-1B-Instruct"
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    content: dict[str, bytes] = field(default_factory=dict)
    gate: str | None = None
    wrong_sha256: bool = False
    agents: list[str] = field(default_factory=list)


class _HubHandler(_Handler):
    """The calls that fetching a snapshot makes: the model's description, its tree, and its files."""

    behaviour: Hub

    def _find(self) -> bytes | None:
        hub, path = self.behaviour, self.path.partition("?")[0]
        hub.agents.append(self.headers.get("User-Agent", ""))
        if not path.startswith((f"/api/models/{hub.repository}", f"/{hub.repository}/resolve/")):
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        is_file = "/resolve/" in path
        if hub.gate is not None and self.headers.get("Authorization") != f"Bearer {hub.gate}" and is_file:
            message = "Access to this model is restricted."
            self._answer(403 if "Authorization" in self.headers else 401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
            return None
        if not is_file:
            self._json(self._tree() if f"/tree/{hub.commit}" in path else self._model())
            return None
        name = path.rpartition("/")[2]
        if name not in hub.content:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit})
            return None
        return hub.content[name]

    def _more_headers(self, data: bytes) -> dict[str, str]:
        return {"X-Repo-Commit": self.behaviour.commit, "X-Linked-Size": str(len(data))}

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _lfs(self, name: str) -> dict[str, Any]:
        data = self.behaviour.content[name]
        if not name.endswith(".safetensors"):
            return {}
        digest = "0" * 64 if self.behaviour.wrong_sha256 else hashlib.sha256(data).hexdigest()
        return {"lfs": {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 134}}

    def _model(self) -> dict[str, Any]:
        hub = self.behaviour
        files = [{"rfilename": n, "size": len(d), "blobId": hashlib.sha1(d).hexdigest(), **self._lfs(n)} for n, d in hub.content.items()]
        return {"id": hub.repository, "modelId": hub.repository, "sha": hub.commit, "siblings": files, "tags": [], "downloads": 0}

    def _tree(self) -> list[dict[str, Any]]:
        hub = self.behaviour
        return [
            {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest(), **self._lfs(n)} for n, d in hub.content.items()
        ]


@contextmanager
def serving_hub(hub: Hub) -> Iterator[str]:
    """The address of a hub with this repository."""
    with serving(hub, _HubHandler) as address:
        yield address
