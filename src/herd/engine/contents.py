"""What the cache holds of a text, out of an engine and into one: contents move, page numbers do not.

A page that is put in is known by its key like any that was computed, so the next request that begins with these tokens finds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as List

from herd.backends.base import PAGE_TOKENS, Backend
from herd.engine.pages import Pages, first_key, next_key
from herd.engine.tables import Tables


def keys_of(tokens: List[int]) -> list[bytes]:
    """The key before the first page, and that of each full page of `tokens`."""
    keys = [first_key(b"")]
    for start in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        keys.append(next_key(keys[-1], tokens[start : start + PAGE_TOKENS]))
    return keys


def find(tables: Tables, tokens: List[int]) -> tuple[list[int], int]:
    """The cached pages that hold the beginning of `tokens`, partly filled ones at the end too, and how many tokens they hold."""
    keys = keys_of(tokens)
    found = tables.find(keys[1:])
    start = found.num_tokens
    tail, count = tables.tail(keys[start // PAGE_TOKENS], tokens[start : start + PAGE_TOKENS])
    return [*found.reused, *tail], start + count


def put(backend: Backend, pages: List[int], contents: Iterable[memoryview]) -> None:
    """Writes contents that `Backend.read_page` gave into pages that nobody else has."""
    for page, data in zip(pages, contents, strict=True):
        backend.write_page(page, data)


def name(books: Pages, tables: Tables, tokens: List[int], pages: list[int]) -> None:
    """Says what owned pages hold. Partly filled ones go into the cache at once and out of `pages`; the others when they are released."""
    keys = keys_of(tokens)
    places = [divmod(place, tables.num_groups) for place in tables.places(len(tokens))]
    for page, (block, group) in zip(pages, places, strict=True):
        if block < len(keys) - 1:
            books.name(page, tables.key(keys[block + 1], group))
    rest = tokens[(len(keys) - 1) * PAGE_TOKENS :]
    if rest:
        tail = pages[-tables.num_groups :]
        del pages[-tables.num_groups :]
        tables.leave_tail(tail, keys[-1], rest)
