"""Where keys and values of earlier tokens are: pages of `PAGE_TOKENS` consecutive tokens of one sequence, for a group of layers.

The engine says which pages belong to a sequence; this module turns a plan's page numbers into row numbers of the arrays. The last page
is nobody's and all zeros: it stands, as `NO_PAGE` is -1, wherever a sequence has no page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import PAGE_TOKENS, Plan, Span
from herd.backends.reference.arrays import Floats
from herd.backends.reference.integer_cache import FORMATS, GROUP, IntegerRows, num_groups, rounded
from herd.models.architecture import CacheShape
from herd.models.cache_groups import CacheGroups, one_group


@dataclass(frozen=True, slots=True)
class Place:
    """One span of the step: its rows among the packed tokens, the position of its first token, and the cache rows of its
    sequence's tokens 0, 1, ... up to and including its own last one."""

    rows: slice
    start: int
    slots: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values [num_pages * PAGE_TOKENS, K, H], in the type that the cache keeps, and where this step's
    sequences lie in them. Attention reads this step's own keys and values from here too, so chunks make no difference."""

    keys: Floats
    values: Floats
    places: tuple[Place, ...]

    def write(self, k_TKH: Floats, v_TKH: Floats) -> None:
        """Stores this step's keys and values at their positions."""
        for place in self.places:
            own = place.slots[place.start :]
            self.keys[own] = k_TKH[place.rows]
            self.values[own] = v_TKH[place.rows]


@dataclass(frozen=True, slots=True)
class IntegerLayerCache:
    """As `LayerCache`, of integers: codes and scales of keys, then of values, as `IntegerRows` has them."""

    stored: tuple[NDArray[Any], ...]
    form: str
    head_width: int
    places: tuple[Place, ...]

    def write(self, k_TKH: Floats, v_TKH: Floats) -> None:
        """Stores this step's keys and values at their positions, rounded."""
        keys, values = rounded(k_TKH, self.form), rounded(v_TKH, self.form)
        parts: tuple[NDArray[Any], ...] = (keys.codes, keys.scales, values.codes, values.scales)
        for place in self.places:
            own = place.slots[place.start :]
            for stored, made in zip(self.stored, parts, strict=True):
                stored[own] = made[place.rows]

    def rows(self, place: Place) -> tuple[IntegerRows, IntegerRows]:
        """Keys and values of a sequence up to the step's last token."""
        parts = [stored[place.slots] for stored in self.stored]
        is_rotated = self.form == "int4"
        return IntegerRows(parts[0], parts[1], self.head_width, is_rotated), IntegerRows(parts[2], parts[3], self.head_width, is_rotated)


class Pages:
    """The contents of all pages, in a float type or in one of `integer_cache.FORMATS`. A page is all zeros until it is written; what it
    held for another sequence is never read."""

    def __init__(self, shapes: Sequence[CacheShape], form: str) -> None:
        self._shapes = shapes
        self._form = form
        self._layers: list[tuple[NDArray[Any], ...]] = []
        self.allocate(0, one_group(len(shapes), PAGE_TOKENS))

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        sizes = [(PAGE_TOKENS, shape, dtype) for each in self._shapes for shape, dtype in self._arrays_of(each)]
        return sum(tokens * math.prod(shape) * np.dtype(dtype).itemsize for tokens, shape, dtype in sizes)

    def allocate(self, num_pages: int, groups: CacheGroups) -> None:
        """New, empty pages 0 .. num_pages-1 of these groups. `MemoryError` (or `ValueError` for absurd sizes) leaves no pages at all."""
        self.groups = groups
        self._group_of = groups.group_of_layer()
        self._places = [groups.layers[group].index(layer) for layer, group in enumerate(self._group_of)]
        self._layers = []
        tokens, shapes = (num_pages + 1) * PAGE_TOKENS, [self._shapes[layer] for layer in groups.layers[0]]
        self._layers = [tuple(np.zeros((tokens, *shape), dtype) for shape, dtype in self._arrays_of(each)) for each in shapes]

    def _arrays_of(self, shape: CacheShape) -> list[tuple[tuple[int, int], str]]:
        """Shape behind the tokens, and type, of each array of a layer."""
        if self._form not in FORMATS:
            return [((shape.num_kv_heads, shape.head_width), self._form)] * 2
        groups = num_groups(shape.head_width)
        return [((shape.num_kv_heads, groups * GROUP), "int8"), ((shape.num_kv_heads, groups), "float16")] * 2

    def read(self, page: int) -> bytes:
        """The bytes of one page: of each layer its keys, then its values."""
        return b"".join(part.tobytes() for part in self._parts(page))

    def write(self, page: int, contents: memoryview) -> None:
        """Makes a page hold what `read` gave."""
        assert contents.nbytes * self.groups.count == self.page_bytes
        start = 0
        for part in self._parts(page):
            part[...] = np.frombuffer(contents[start : start + part.nbytes], part.dtype).reshape(part.shape)
            start += part.nbytes

    def _parts(self, page: int) -> list[NDArray[Any]]:
        rows = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
        return [stored[rows] for layer in self._layers for stored in layer]

    def layers(self, plan: Plan) -> Sequence[LayerCache | IntegerLayerCache]:
        """The caches of all layers, for one step."""
        places = [_places(plan, group, self.groups.count) for group in range(self.groups.count)]
        return [
            self._cache(self._layers[place], shape, places[group])
            for shape, group, place in zip(self._shapes, self._group_of, self._places, strict=True)
        ]

    def _cache(self, layer: tuple[NDArray[Any], ...], shape: CacheShape, places: tuple[Place, ...]) -> LayerCache | IntegerLayerCache:
        if self._form in FORMATS:
            return IntegerLayerCache(layer, self._form, shape.head_width, places)
        keys, values = layer
        return LayerCache(keys, values, places)


def rows_of(plan: Plan) -> list[slice]:
    """Where each span's tokens are among the packed ones: spans come one after another."""
    found, row = [], 0
    for span in plan.spans:
        found.append(slice(row, row + len(span.tokens)))
        row += len(span.tokens)
    return found


def _places(plan: Plan, group: int, groups: int) -> tuple[Place, ...]:
    """Where each span of the plan lies for the layers of a group."""
    return tuple(Place(rows, span.start, _slots(span, group, groups)) for span, rows in zip(plan.spans, rows_of(plan), strict=True))


def _slots(span: Span, group: int, groups: int) -> NDArray[np.int64]:
    positions = np.arange(span.start + len(span.tokens))
    return np.asarray(span.pages, np.int64)[positions // PAGE_TOKENS * groups + group] * PAGE_TOKENS + positions % PAGE_TOKENS
