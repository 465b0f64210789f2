"""Who owns which page, and which pages are kept because their contents may be wanted again. Numbers only, no contents.

A page is of one group of layers (`tables`); the keys here are then those of groups.

    free --take--> owned (by one or several sequences) --release--> cached, if its contents have a key, else free
      ^                                  ^                            |
      +------------- evicted ------------+--------- found ------------+      least recently released first

A full page has a key: a digest of a salt and of *all* tokens from the first to the page's last, and of the pictures that some of
them stand for, so equal keys mean equal contents. A partly filled page that a sequence leaves behind is kept under the key of the page
before it, together with its tokens; because nobody else can own it, the next conversation that begins like this takes it over and
writes on.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

KEY_BYTES = 32


def first_key(salt: bytes) -> bytes:
    """The key before the first page."""
    return blake2b(salt, digest_size=KEY_BYTES).digest()


Content = int | tuple[int, bytes, int]
"""A token; one that stands for a picture with the picture's digest and its own place among that picture's tokens."""


def next_key(before: bytes, contents: Sequence[Content]) -> bytes:
    """The key of a page that holds `contents` after everything that `before` stands for."""
    tokens = array("I", [each if isinstance(each, int) else each[0] for each in contents])
    mixed = blake2b(before + tokens.tobytes(), digest_size=KEY_BYTES)
    for index, each in enumerate(contents):
        if not isinstance(each, int):
            mixed.update(array("q", [index, each[2], len(each[1])]).tobytes() + each[1])
    return mixed.digest()


class Pages:
    """Reference counts, the free list and the cache. `free + owned + cached` is always the number of all pages."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._owners = [0] * num_pages
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._tail_of: dict[bytes, tuple[int, tuple[Content, ...]]] = {}
        self._before_tail: dict[int, bytes] = {}
        self.num_named = 0
        """How often a page was given a key."""
        self.evicted: Callable[[int, bytes], None] | None = None
        """Told of a full page and its key before it is forgotten."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_owned(self) -> int:
        return self.num_pages - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that `take` can still give."""
        return len(self._free) + len(self._cached)

    def owners(self, page: int) -> int:
        return self._owners[page]

    def is_known(self, page: int) -> bool:
        """Whether the page can be found by its contents, so that nobody may write to it."""
        return page in self._key_of or page in self._before_tail

    def take(self) -> int | None:
        """A page for one owner, its contents undefined; None if all are owned. Forgets the oldest cached one if it must."""
        if not self._free:
            if not self._cached:
                return None
            oldest = next(iter(self._cached))
            if self.evicted is not None and (key := self._key_of.get(oldest)) is not None:
                self.evicted(oldest, key)
            del self._cached[oldest]
            self._forget(oldest)
            self._free.append(oldest)
        page = self._free.pop()
        self._owners[page] = 1
        return page

    def page_of(self, key: bytes) -> int | None:
        """The full page of this key, if there is one. Nothing changes hands."""
        return self._page_of.get(key)

    def share(self, page: int) -> None:
        """One more owner for a full page that was found."""
        assert page in self._key_of
        self._cached.pop(page, None)
        self._owners[page] += 1

    def tail(self, before: bytes, tokens: Sequence[Content]) -> tuple[int, int] | None:
        """A cached, partly filled page after `before` and how many of `tokens` it begins with, if any."""
        kept = self._tail_of.get(before)
        if kept is None:
            return None
        page, contents = kept
        same = 0
        for ours, theirs in zip(tokens, contents, strict=False):
            if ours != theirs:
                break
            same += 1
        return (page, same) if same else None

    def take_over(self, page: int) -> None:
        """Makes the caller the only owner of a page that `tail` gave; it is no longer known by its contents."""
        assert page in self._cached and page in self._before_tail
        del self._cached[page]
        self._forget(page)
        self._owners[page] = 1

    def name(self, page: int, key: bytes) -> None:
        """Says what a full, owned page holds. If another page already holds the same, this one stays unknown."""
        assert self._owners[page] > 0
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key
            self.num_named += 1

    def named(self) -> Iterator[tuple[int, bytes]]:
        """Full pages that can be found, and their keys. Nothing may change meanwhile."""
        return iter(self._key_of.items())

    def release(self, page: int) -> None:
        """One owner less. The last one leaves a known page in the cache and gives any other back."""
        assert self._owners[page] > 0
        self._owners[page] -= 1
        if self._owners[page]:
            return
        if page in self._key_of:
            self._cached[page] = None
        else:
            self._free.append(page)

    def leave_tail(self, page: int, before: bytes, tokens: Sequence[Content]) -> None:
        """As `release`, for a page with a single owner that holds only `tokens` after `before`."""
        assert self._owners[page] == 1 and page not in self._key_of and tokens
        if before in self._tail_of:
            earlier, _ = self._tail_of[before]
            del self._cached[earlier]
            self._forget(earlier)
            self._free.append(earlier)
        self._owners[page] = 0
        self._tail_of[before] = (page, tuple(tokens))
        self._before_tail[page] = before
        self._cached[page] = None

    def forget_contents(self, page: int) -> None:
        """An owned page is no longer what its key says: nobody shall find it."""
        assert self._owners[page] > 0
        self._forget(page)

    def forget_cached(self) -> None:
        """Empties the cache: all pages that nobody owns are free."""
        for page in self._cached:
            self._forget(page)
            self._free.append(page)
        self._cached.clear()

    def check(self) -> None:
        """Fails (AssertionError) if the books are wrong."""
        free, cached = set(self._free), set(self._cached)
        owned = {page for page, owners in enumerate(self._owners) if owners}
        assert len(free) == len(self._free), "a page is free twice"
        assert not free & cached and not free & owned and not cached & owned, "a page is in two places"
        assert len(free) + len(owned) + len(cached) == self.num_pages, (len(free), len(owned), len(cached), self.num_pages)
        assert all(owners >= 0 for owners in self._owners)
        assert {page: key for key, page in self._page_of.items()} == self._key_of
        assert {page: before for before, (page, _) in self._tail_of.items()} == self._before_tail
        assert not self._key_of.keys() & self._before_tail.keys()
        assert cached == (self._key_of.keys() - owned) | self._before_tail.keys(), "cached pages are those that are known and not owned"

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]
        before = self._before_tail.pop(page, None)
        if before is not None:
            del self._tail_of[before]
