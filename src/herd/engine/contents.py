"""What the cache holds of a text, out of an engine and into one: contents move, page numbers do not.

A page that is put in is known by its key like any that was computed, so the next request that begins with these tokens finds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as List

from herd.backends.base import PAGE_TOKENS, Backend
from herd.engine.pages import Pages, first_key, next_key


def keys_of(tokens: List[int]) -> list[bytes]:
    """The key before the first page, and that of each full page of `tokens`."""
    keys = [first_key(b"")]
    for start in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        keys.append(next_key(keys[-1], tokens[start : start + PAGE_TOKENS]))
    return keys


def find(books: Pages, tokens: List[int]) -> tuple[list[int], int]:
    """The cached pages that hold the beginning of `tokens`, a partly filled one at the end too, and how many tokens they hold."""
    keys = keys_of(tokens)
    pages = books.find(keys[1:])
    start = len(pages) * PAGE_TOKENS
    tail = books.tail(keys[len(pages)], tokens[start : start + PAGE_TOKENS])
    return (pages, start) if tail is None else ([*pages, tail[0]], start + tail[1])


def put(backend: Backend, pages: List[int], contents: Iterable[memoryview]) -> None:
    """Writes contents that `Backend.read_page` gave into pages that nobody else has."""
    for page, data in zip(pages, contents, strict=True):
        backend.write_page(page, data)


def name(books: Pages, tokens: List[int], pages: list[int]) -> None:
    """Says what owned pages hold. A partly filled one goes into the cache at once and out of `pages`; the others when they are
    released."""
    keys = keys_of(tokens)
    for page, key in zip(pages, keys[1:], strict=False):
        books.name(page, key)
    rest = tokens[(len(keys) - 1) * PAGE_TOKENS :]
    if rest:
        books.leave_tail(pages.pop(), keys[-1], rest)
