"""One file over HTTP that survives anything: a lost connection, kill -9, a full disk. It goes on where it was.

    fetch(url) -> target.part grows -> complete, size and SHA-256 as promised -> target

Beside `target.part` lies `target.part.json` with the server's identity of the file; if the server has another file
by now, the download starts over. Nothing is ever visible under `target` that is not complete and checked.
The caller holds a lock: two processes never write the same part file.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from herd.errors import CapacityError, FileProblem, ProviderError
from herd.family.progress import Progress
from herd.files.writing import cannot_write

_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 60.0
_MAX_FAILURES = 5
_BACK_OFF_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How to reach servers: extra certificate authorities (PEM files) and proxies by scheme, besides the environment's own."""

    authorities: tuple[Path, ...] = ()
    proxies: Mapping[str, str] = field(default_factory=dict)

    def opener(self) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context()
        for path in self.authorities:
            try:
                context.load_verify_locations(cafile=str(path))
            except (OSError, ssl.SSLError) as error:
                raise FileProblem(
                    f"The certificate file {path} cannot be used ({error}). It is named by PIP_CERT or pip's configuration."
                ) from error
        proxies = {**self.proxies, **urllib.request.getproxies()}
        return urllib.request.build_opener(urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context))


@dataclass(frozen=True, slots=True)
class _Note:
    """Whose bytes a part holds: the server's identity of the file (strong ETag or date), and its size. Zero: not known."""

    url: str
    identity: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What is already here: the bytes, and the note of whose they are."""

    path: Path
    note_path: Path

    def note(self, url: str) -> _Note | None:
        """The note, if there is one for this URL."""
        try:
            note = json.loads(self.note_path.read_bytes())
            found = _Note(str(note["url"]), str(note["identity"]), int(note["total_bytes"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.url == url else None

    def start(self, note: _Note) -> None:
        """Begins an empty part."""
        self.path.unlink(missing_ok=True)
        with disk_errors(self.note_path):
            self.note_path.write_text(json.dumps(asdict(note)), encoding="utf-8")

    def num_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Download:
    """One file on its way: where from, where to, and who is told."""

    url: str
    name: str
    part: _Part
    progress: Progress
    opener: urllib.request.OpenerDirector
    extra_bytes: int


def fetch(url: str, target: Path, *, sha256: str | None, progress: Progress, network: Network, extra_bytes: int = 0) -> None:
    """Makes `target` the file at `url`.

    `extra_bytes` is what the caller will need on the same disk afterwards; it is counted when space is checked up front.
    Errors: `ProviderError` (network, server), `CapacityError` (disk; the part is kept), `FileProblem` (wrong bytes).
    """
    part = _Part(target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json"))
    download = _Download(url, target.name, part, progress, network.opener(), extra_bytes)
    may_be_stale = part.num_bytes() > 0
    _complete(download)
    if sha256 is not None and digest(part.path) != sha256:
        part.drop()
        if may_be_stale:
            _complete(download)
        if not may_be_stale or digest(part.path) != sha256:
            part.drop()
            raise FileProblem(
                f"{target.name} from {_host(url)} does not have the SHA-256 {sha256} that was promised. It was deleted; "
                "try again, or ask who serves it."
            )
    os.replace(part.path, target)
    part.note_path.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """`CapacityError` if the disk of `folder` has less room than `needed_bytes`."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise CapacityError(
            f"{what} needs {needed_bytes:,} bytes in {folder}, and {free:,} are free. Make room, or set HERD_HOME to another disk."
        )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what a disk may do while `path` is written into errors that name the path. What was written stays."""
    try:
        yield
    except OSError as problem:
        raise cannot_write(path, problem) from problem


def _complete(download: _Download) -> None:
    """Fetches until the part is whole; a lost connection is tried again while it still brings bytes."""
    failures = 0
    while True:
        before = download.part.num_bytes()
        problem: ProviderError | None = None
        try:
            if _request(download):
                return
        except _Retry as error:
            problem = error
        now = download.part.num_bytes()
        failures = 0 if now > before else failures + 1
        if failures >= _MAX_FAILURES:
            reason = str(problem) if problem else f"{_host(download.url)} stopped sending {download.name}."
            raise ProviderError(f"{reason} Tried {failures} times; the {now:,} bytes that arrived are kept.") from problem
        time.sleep(min(_BACK_OFF_S * 2**failures, 8.0))


def _request(download: _Download) -> bool:
    """One request for what is missing; True when the part is whole."""
    part = download.part
    have, note = part.num_bytes(), part.note(download.url)
    if note is not None and have and have == note.total_bytes:
        return True
    if note is None or not note.identity:
        have, note = 0, None
    with _open(download, have, note) as response:
        if have and response.status == 206:
            if _content_range(response.headers) != (have, note.total_bytes if note else 0):
                part.drop()
                return False
        else:
            have, note = 0, _Note(download.url, _identity(response.headers), int(response.headers.get("Content-Length") or 0))
            part.start(note)
        total = note.total_bytes if note else 0
        require_space(part.path.parent, max(total - have, 0) + download.extra_bytes, download.name)
        return _append(download, response, have, total)


def _append(download: _Download, response: Any, have: int, total: int) -> bool:
    """The body, added to the part; True if that makes it whole."""
    path = download.part.path
    with disk_errors(path), path.open("ab") as file:
        while chunk := _read(response, download.url):
            have += len(chunk)
            if total and have > total:
                raise ProviderError(f"{_host(download.url)} sent more than the {total:,} bytes that it announced for {download.name}.")
            file.write(chunk)
            download.progress(download.name, have, total)
        file.flush()
        os.fsync(file.fileno())
    return total in (0, have)


def _read(response: Any, url: str) -> bytes:
    """The next bytes. A connection that breaks can be tried again; it is not an error of the disk."""
    try:
        return bytes(response.read(_CHUNK_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(f"The connection to {_host(url)} broke ({error}).") from error


def _identity(headers: Message) -> str:
    """What lets the rest of the same file be asked for: a strong ETag, else the date, else nothing."""
    etag = str(headers.get("ETag", ""))
    return etag if etag and not etag.startswith("W/") else str(headers.get("Last-Modified", ""))


def _content_range(headers: Message) -> tuple[int, int]:
    """First byte and size of the whole file of a 206; (-1, -1) if the header is not understood."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", str(headers.get("Content-Range", "")))
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def _open(download: _Download, have: int, note: _Note | None) -> Any:
    """The response to a request for the file, or for what follows the first `have` bytes of it."""
    url = download.url
    headers = {"User-Agent": "herd", "Accept-Encoding": "identity"}
    if have and note:
        headers |= {"Range": f"bytes={have}-", "If-Range": note.identity}
    try:
        return download.opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        message = f"{_host(url)} answered {error.code} {error.reason} for {download.name}."
        if error.code == 416:
            download.part.drop()
        can_retry = error.code in (408, 416, 429) or error.code >= 500
        raise (_Retry(message) if can_retry else ProviderError(message)) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            advice = "Set SSL_CERT_FILE or PIP_CERT to the authorities of your network."
            raise ProviderError(f"The certificate of {_host(url)} is not trusted ({error.reason.verify_message}). {advice}") from error
        raise _Retry(f"{_host(url)} cannot be reached ({error.reason}). Check the network and the proxy settings.") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(f"{_host(url)} cannot be reached ({error}). Check the network and the proxy settings.") from error


class _Retry(ProviderError):
    """A failure of the network that may be gone a moment later."""


def _host(url: str) -> str:
    """Whom a message may name: never the password that a URL can hold."""
    return urlsplit(url).hostname or urlsplit(url).scheme
