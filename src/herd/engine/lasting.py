"""Between an engine's pages and those in a folder: what leaves the memory is kept there, and what a prompt lacks is taken from there.

    Pages (numbers) + Backend (contents) <--Lasting--> DiskPages (files)

A page is written when the engine has nothing to do (`tidy`), at the latest when somebody else needs it, and at the end. What a step
loop does of that is copying: a page each. Bits that are read back are those that were computed, so an answer is the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from herd.backends.base import Backend
from herd.engine.disk import DiskPages

if TYPE_CHECKING:
    from herd.engine.pages import Pages

AT_ONCE = 4
"""Pages that are copied in one pause."""
AT_END_S = 1.5


@final
class Lasting:
    """One engine's way to the disk. The engine's lock is held by who calls, but for `read`."""

    def __init__(self, backend: Backend, disk: DiskPages, pages: Pages) -> None:
        self._backend = backend
        self._disk = disk
        self._pages = pages
        self._tidied = -1
        pages.evicted = self.evicted

    @property
    def memory_bytes(self) -> int:
        """What copies of pages take at most."""
        return self._disk.memory_bytes

    def has(self, key: bytes) -> bool:
        """Whether a page is on the disk, or on its way. Does not touch the disk."""
        return self._disk.has(key)

    def read(self, keys: Sequence[bytes]) -> list[bytes]:
        """The contents of the first of these pages, as many as there are. `forget` gives them back."""
        return self._disk.read(keys)

    def forget(self, num_pages: int) -> None:
        self._disk.forget(num_pages)

    def fill(self, page: int, contents: bytes) -> None:
        """Makes a page hold what `read` gave."""
        self._backend.write_page(page, memoryview(contents))

    def evicted(self, page: int, key: bytes) -> None:
        """A page's contents are about to be lost."""
        if self._disk.has_room and not self._disk.has(key):
            self._disk.keep(key, self._backend.read_page(page))

    def tidy(self) -> None:
        """Keeps a few pages that the disk lacks."""
        if self._tidied != self._pages.num_named:
            self._keep(AT_ONCE, float("inf"))

    def close(self) -> None:
        """Keeps what the disk lacks, as far as the time goes. The folder is left alone afterwards."""
        end = time.monotonic() + AT_END_S
        while self._tidied != self._pages.num_named and time.monotonic() < end:
            self._keep(AT_ONCE, end)
            self._disk.flush(end - time.monotonic())
        self.leave()

    def leave(self) -> None:
        """Writes and reads nothing more."""
        self._pages.evicted = None
        self._disk.close()

    def _keep(self, most: int, end: float) -> None:
        num_named = self._pages.num_named
        for page, key in self._pages.named():
            if self._disk.has(key):
                continue
            if most == 0 or time.monotonic() >= end or not self._disk.has_room:
                return
            self._disk.keep(key, self._backend.read_page(page))
            most -= 1
        self._tidied = num_named
