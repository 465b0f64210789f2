"""Keys: made once, shown once, kept only as a hash, limited, and revoked while the server runs.

    herd-<43 characters>      256 random bits; a plain SHA-256 of that cannot be searched, so nothing slower is needed

The file is JSON, readable by its owner only, and replaced as a whole. A running server looks at it once a second.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from herd.errors import FileProblem, UsageError, did_you_mean
from herd.files import atomic_write, file_lock, home, read_json
from herd.records import dataclass

PREFIX = "herd-"
VERSION = 1
LOOK_AGAIN_S = 1.0
MAX_KEYS = 100_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ @-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key, without the key.

    id                    what it is called in logs, lists and limits
    name                  what its owner called it
    hash                  SHA-256 of its text, in hexadecimal
    created, expires      seconds since 1970; `expires` None: never
    requests_per_minute   None: as many as the server answers
    tokens_per_minute     of prompts and answers together
    streams               answers at the same time
    models                patterns of names it reaches, such as `llama-3*`; empty: all
    """

    id: str
    name: str
    hash: str
    created: int
    expires: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None
    models: tuple[str, ...] = ()

    def reaches(self, model: str) -> bool:
        """Whether a request of this key may name this model, or an adapter of it."""
        base = model.partition(":")[0]
        return not self.models or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.models for name in (model, base))

    def is_valid(self, now: float) -> bool:
        return self.expires is None or now < self.expires


LIMIT_NAMES = ("expires", "requests_per_minute", "tokens_per_minute", "streams", "models")


def keys_file() -> Path:
    """Where keys are kept. It need not exist yet."""
    return home() / "server" / "keys.json"


class Keys:
    """The keys in a file; `path` None: there are none and nobody needs one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._pepper = secrets.token_bytes(32)
        self._by_digest: dict[bytes, Key] = {}
        self._seen: tuple[int, int, int] | None = None
        self._looked = float("-inf")
        self._salt = _installation_secret(path)

    def find(self, text: str) -> Key | None:
        """The valid key with this text.

        What is looked up is a keyed hash of the text's hash, so that how long it takes tells nothing about any key.
        """
        self._look()
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        found = self._by_digest.get(self._hidden(digest))
        is_same = hmac.compare_digest(found.hash if found is not None else "0" * 64, digest)
        return found if found is not None and is_same and found.is_valid(time.time()) else None

    def salt(self, caller: str) -> bytes:
        """What keeps this caller's cached prompts apart from all others': it depends on who asks and on this installation."""
        return hmac.digest(self._salt, caller.encode(), "sha256")

    def all(self) -> list[Key]:
        self._look()
        return sorted(self._by_digest.values(), key=lambda key: key.created)

    def _look(self) -> None:
        """Reads the file again if it changed. One that cannot be read leaves no key valid: a broken lock stays shut."""
        now = time.monotonic()
        if self.path is None or now - self._looked < LOOK_AGAIN_S:
            return
        self._looked = now
        try:
            found = os.stat(self.path)
            state = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            self._by_digest, self._seen = {}, None
            return
        if state != self._seen:
            try:
                self._by_digest = {self._hidden(key.hash): key for key in read_keys(self.path)}
            except FileProblem:
                self._by_digest = {}
            self._seen = state

    def _hidden(self, digest: str) -> bytes:
        return hmac.digest(self._pepper, digest.encode(), "sha256")


def create(path: Path, name: str, **limits: Any) -> tuple[str, Key]:
    """A new key: its text, which is not kept, and what is kept of it."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"The name {name!r:.80} cannot be used; expected 1 to 64 letters, digits, spaces or any of . _ @ -")
    text = PREFIX + secrets.token_urlsafe(32)
    key = Key(id=secrets.token_hex(4), name=name, hash=hashlib.sha256(text.encode()).hexdigest(), created=int(time.time()), **limits)
    _check(key)
    with _changing(path) as keys:
        if len(keys) >= MAX_KEYS:
            raise UsageError(f"{path} has {len(keys)} keys, the most there can be. Revoke some.")
        if any(each.name == name for each in keys):
            raise UsageError(f"There is a key named {name!r} already. Revoke it first, or choose another name.")
        keys.append(key)
    return text, key


def limit(path: Path, name: str, **limits: Any) -> Key:
    """Changes limits of a key, by its name or id; a limit that is None is lifted."""
    with _changing(path) as keys:
        at = _find(keys, name)
        keys[at] = replace(keys[at], **limits)
        _check(keys[at])
        return keys[at]


def revoke(path: Path, name: str) -> Key:
    """Takes a key away, by its name or id; it is refused from the next second on."""
    with _changing(path) as keys:
        return keys.pop(_find(keys, name))


def _find(keys: list[Key], name: str) -> int:
    for index, key in enumerate(keys):
        if name in (key.name, key.id):
            return index
    raise UsageError(f"There is no key {name!r:.80}{did_you_mean(name, (key.name for key in keys))} `herd keys list` shows them.")


def _check(key: Key) -> None:
    for name in ("requests_per_minute", "tokens_per_minute", "streams"):
        value = getattr(key, name)
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 2**40):
            raise UsageError(f"{name} is {value!r:.60}; expected a whole number above 0.")
    models: Iterable[object] = key.models
    if len(key.models) > 100 or any(not isinstance(each, str) or not 0 < len(each) <= 512 for each in models):
        raise UsageError("models is a list of at most 100 names or patterns of names.")


class _changing:
    """The keys of a file as a list; what is left in it is written when the block ends well. One process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> list[Key]:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = file_lock(self._path.with_name(f"{self._path.name}.lock"))
        self._lock.__enter__()
        try:
            self._keys = read_keys(self._path) if self._path.exists() else []
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self._keys

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                value = {"version": VERSION, "keys": [asdict(key) for key in self._keys]}
                _write_private(self._path, json.dumps(value, indent=1).encode())
        finally:
            self._lock.__exit__(None, None, None)


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. `FileProblem` for one that is damaged, or newer than this program."""
    value = read_json(path)
    if value.get("version") != VERSION:
        raise FileProblem(f"{path}: is of version {value.get('version')!r:.40}; this program reads version {VERSION}. Use a newer herd.")
    rows = value.get("keys")
    if not isinstance(rows, list):
        raise FileProblem(f"{path}: has no list of keys.")
    return [_read_key(path, row) for row in rows]


def _read_key(path: Path, row: object) -> Key:
    names = {field.name for field in fields(Key)}
    if not isinstance(row, Mapping) or set(row) != names or not all(isinstance(row[name], str) for name in ("id", "name", "hash")):
        raise FileProblem(f"{path}: has an entry that is not a key. Restore the file, or remove it and make new keys.")
    models: Iterable[str] = row["models"] if isinstance(row["models"], list) else ()
    key = Key(**{**row, "models": tuple(models)})
    try:
        _check(key)
    except UsageError as problem:
        raise FileProblem(f"{path}: {problem}") from None
    times: Iterable[object] = (key.created, 0 if key.expires is None else key.expires)
    if not all(isinstance(each, int) for each in times) or len(key.hash) != 64:
        raise FileProblem(f"{path}: the key {key.id!r:.40} has a wrong time or hash.")
    return key


def _write_private(path: Path, data: bytes) -> None:
    """A file that only its owner reads, from its first byte on."""
    with atomic_write(path) as file:
        if hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), 0o600)
        file.write(data)


def _installation_secret(path: Path | None) -> bytes:
    """A random text that this installation keeps beside its keys; where nothing can be kept, one for this process."""
    place = (path or keys_file()).with_name("secret")
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with file_lock(place.with_name("secret.lock")):
            if place.exists() and len(found := place.read_bytes()) == 32:
                return found
            made = secrets.token_bytes(32)
            _write_private(place, made)
            return made
    except (OSError, FileProblem):
        return secrets.token_bytes(32)
