"""Which LoRA adapters requests may name. An adapter that is removed is refused to new requests at once, and leaves the backend when
the last sequence that has it is gone.

What adapters make of the same tokens differs, so their pages do: each has a salt, a digest of its matrices. One that comes again finds
what was computed under it, in a later process too; another of the same name does not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import blake2b

from herd.backends.base import Backend, unknown_adapter
from herd.errors import UsageError
from herd.models.weights import Update


class Adapters:
    """The adapters of one engine. Not safe to use from several threads; the engine holds its lock."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._salts: dict[str, bytes] = {}
        self._leaving: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that requests may name."""
        return tuple(name for name in self._salts if name not in self._leaving)

    def add(self, name: str, updates: Mapping[str, Update], digest: bytes) -> None:
        """digest: of `updates`, by `digest_of`."""
        if name in self._leaving:
            raise UsageError(f"The adapter {name!r} was removed and still answers somebody; add it again when that is done.")
        self._backend.add_adapter(name, updates)
        self._salts[name] = digest

    def remove(self, name: str) -> None:
        """From now on requests that name it are refused. `settle` does the rest."""
        self.check(name)
        self._leaving.add(name)

    def settle(self, in_use: Collection[str | None]) -> None:
        """Takes those out that were removed and that nobody uses any more."""
        for name in self._leaving.difference(in_use):
            self._backend.remove_adapter(name)
            self._leaving.discard(name)
            del self._salts[name]

    @property
    def is_settled(self) -> bool:
        return not self._leaving

    def check(self, name: str | None) -> None:
        """`UsageError` for one that requests may not name."""
        if name is not None and (name not in self._salts or name in self._leaving):
            raise unknown_adapter(name, self.names)

    def salt(self, name: str | None, salt: bytes) -> bytes:
        """The salt of a request's pages."""
        return salt if name is None else blake2b(salt, key=self._salts[name], digest_size=32).digest()


def digest_of(updates: Mapping[str, Update]) -> bytes:
    """A digest of everything that an adapter's numbers follow from. Reads all of its matrices."""
    found = blake2b(digest_size=32)
    for name in sorted(updates):
        update = updates[name]
        found.update(repr((name, update.scale)).encode())
        for matrix in (update.down, update.up):
            data = memoryview(matrix.data)
            found.update(repr((matrix.dtype.name, matrix.shape, data.nbytes)).encode())
            found.update(data if data.c_contiguous else data.tobytes())
    return found.digest()
