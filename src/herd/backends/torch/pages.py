"""Where keys and values of earlier tokens are: pages of `PAGE_TOKENS` consecutive tokens of one sequence, for a group of layers.

The packed tokens of a step are of two kinds. Sequences with several tokens in it (prompts) attend one by one; all those with
a single token (answers being written) attend together, their pages gathered side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from herd.backends.base import PAGE_TOKENS, Plan, Span
from herd.backends.torch.attention import attend, first_seen, read, softmax, visible
from herd.errors import UsageError
from herd.models.architecture import CacheShape
from herd.models.cache_groups import CacheGroups, one_group
from herd.models.ops import Window


class Opened(Protocol):
    """What is done with a softmax that a researcher wants: weights [N, t, positions] of one sequence -> those to go on with."""

    def __call__(self, weights_NtS: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Place:
    """One sequence with several tokens in the step: its rows among the packed tokens, the position of the first, and the cache
    rows of its tokens 0, 1, ... up to its own last one; where it has no page, those of the page that is nobody's."""

    rows: slice
    start: int
    slots: Tensor


@dataclass(frozen=True, slots=True)
class Singles:
    """All sequences with one token in the step: their rows among the packed tokens (None: every row, in order), their
    positions and their pages [R, pages]; entries after a sequence's last page, or before its window, are never read."""

    rows: Tensor | None
    positions_R: Tensor
    pages_RP: Tensor
    reads: dict[Window | None, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def read(self, window: Window | None) -> tuple[Tensor, Tensor]:
        """Cache rows [R, S] of the positions that the window reaches, and which of them are there [R, S]. Where one is not
        there the token's own row stands: what lies in other pages may be anything, not-a-numbers too, and is never touched."""
        if window not in self.reads:
            reach = self.pages_RP.shape[1] * PAGE_TOKENS
            reach = reach if window is None else min(reach, window.tokens)
            own = self.positions_R[:, None]
            wanted_RS = first_seen(own, window) + torch.arange(reach, device=own.device)
            self.reads[window] = self.slots(torch.minimum(wanted_RS, own)), wanted_RS <= own
        return self.reads[window]

    def slots(self, positions_RS: Tensor) -> Tensor:
        """Cache rows of these positions."""
        pages_RS = self.pages_RP.gather(1, positions_RS // PAGE_TOKENS)
        return pages_RS * PAGE_TOKENS + positions_RS % PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of one step lie: `written_T` is the cache row of each."""

    written_T: Tensor
    places: tuple[Place, ...]
    singles: Singles | None


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's keys and values [slots, K, H]. Attention reads this step's own keys and values from here too, so chunks make
    no difference."""

    keys: Tensor
    values: Tensor
    layout: Layout

    def attend(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float, window: Window | None, opened: Opened | None = None
    ) -> Tensor:
        """Writes this step's keys and values at their positions, then attends -> [T, N, H]."""
        layout = self.layout
        self.keys.index_copy_(0, layout.written_T, k_TKH)
        self.values.index_copy_(0, layout.written_T, v_TKH)
        singles = layout.singles
        if singles is not None and singles.rows is None and opened is None:
            return self._singles(q_TNH, singles, scale, window)
        y_TNH = torch.empty_like(q_TNH)
        for place in layout.places:
            y_TNH[place.rows] = self._place(q_TNH[place.rows], place, scale, window, opened)
        if singles is not None:
            assert singles.rows is not None, "sequences are opened one by one"
            y_TNH[singles.rows] = self._singles(q_TNH[singles.rows], singles, scale, window)
        return y_TNH

    def _singles(self, q_RNH: Tensor, singles: Singles, scale: float, window: Window | None) -> Tensor:
        slots_RS, visible_RS = singles.read(window)
        keys, values = (stored[slots_RS] for stored in (self.keys, self.values))
        return attend(q_RNH[:, None], keys, values, scale, visible_RS[:, None])[:, 0]

    def _place(self, q_tNH: Tensor, place: Place, scale: float, window: Window | None, opened: Opened | None) -> Tensor:
        device, length = q_tNH.device, len(q_tNH)
        if opened is not None:
            keys, values = self.keys[place.slots], self.values[place.slots]
            seen = _seen(place.start, length, 0, window, device)
            weights = opened(softmax(q_tNH[None], keys[None], scale, seen)[0])
            return read(weights[None], values[None])[0]
        first = int(first_seen(torch.tensor(place.start), window))
        slots = place.slots[first:]
        keys, values = self.keys[slots][None], self.values[slots][None]
        if place.start == 0 and (window is None or window.tokens >= length):
            return attend(q_tNH[None], keys, values, scale, None, is_causal=True)[0]
        return attend(q_tNH[None], keys, values, scale, _seen(place.start, length, first, window, device))[0]


def _seen(start: int, length: int, first: int, window: Window | None, device: torch.device) -> Tensor:
    """Which of the positions from `first` on the tokens at `start`, ... see: [1, t, s]."""
    end = start + length
    return visible(torch.arange(start, end, device=device), torch.arange(first, end, device=device), window)[None]


class Pages:
    """The contents of all pages, and of one page more, which belongs to nobody: rows that only fill up a step write to it."""

    def __init__(self, shapes: Sequence[CacheShape], dtype: torch.dtype, device: torch.device) -> None:
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self._layers: list[tuple[Tensor, Tensor]] = []
        self.scratch_page = 0
        self.allocate(0, one_group(len(shapes), PAGE_TOKENS))

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return sum(2 * PAGE_TOKENS * shape.num_kv_heads * shape.head_width * self._dtype.itemsize for shape in self._shapes)

    def allocate(self, num_pages: int, groups: CacheGroups) -> None:
        """New pages 0 .. num_pages-1 of these groups. Whatever error the system gives leaves no pages at all."""
        self.groups = groups
        self._group_of = groups.group_of_layer()
        self._places = [groups.layers[group].index(layer) for layer, group in enumerate(self._group_of)]
        self._layers = []
        self.scratch_page = num_pages
        shapes = [self._shapes[layer] for layer in groups.layers[0]]
        sizes = [((num_pages + 1) * PAGE_TOKENS, shape.num_kv_heads, shape.head_width) for shape in shapes]
        self._layers = [(self._empty(size), self._empty(size)) for size in sizes]

    def read(self, page: int) -> bytes:
        """The bytes of one page: of each layer its keys, then its values."""
        return b"".join(part.cpu().contiguous().view(torch.uint8).numpy().tobytes() for part in self._parts(page))

    def write(self, page: int, contents: memoryview) -> None:
        """Makes a page hold what `read` gave."""
        assert contents.nbytes * self.groups.count == self.page_bytes
        start = 0
        for part in self._parts(page):
            size = part.numel() * part.element_size()
            data = np.frombuffer(contents[start : start + size], np.uint8).copy()
            part.copy_(torch.from_numpy(data).view(part.dtype).reshape(part.shape))
            start += size

    def _parts(self, page: int) -> list[Tensor]:
        rows = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
        return [stored[rows] for layer in self._layers for stored in layer]

    def layers(self, layouts: Sequence[Layout]) -> list[LayerCache]:
        """The caches of all layers, for one step that lies so for each group."""
        return [LayerCache(*self._layers[place], layouts[group]) for group, place in zip(self._group_of, self._places, strict=True)]

    def _empty(self, size: tuple[int, ...]) -> Tensor:
        if self._device.type != "cpu":
            return torch.zeros(size, dtype=self._dtype, device=self._device)
        # numpy asks the system for pages that are zero when first touched; torch would touch them all now.
        bits = {2: np.int16, 4: np.int32, 8: np.int64}[self._dtype.itemsize]
        return torch.from_numpy(np.zeros(size, bits)).view(self._dtype)


def layouts_of(plan: Plan, pages: Pages, device: torch.device, *, one_by_one: bool = False) -> list[Layout]:
    """Where the tokens of a plan lie, for each group. `one_by_one`: no sequences together, so that each softmax can be looked at."""
    groups = pages.groups.count
    return [_layout(plan, Column(group, groups, pages.scratch_page), device, one_by_one) for group in range(groups)]


@dataclass(frozen=True, slots=True)
class Column:
    """Which of a sequence's pages are a group's, of so many; and the page in the place of those that it does not have."""

    group: int
    groups: int
    scratch_page: int

    def of(self, span: Span) -> NDArray[np.int64]:
        """The group's pages, block by block."""
        pages = np.asarray(span.pages[self.group :: self.groups], np.int64)
        return np.where(pages < 0, self.scratch_page, pages)


def _layout(plan: Plan, column: Column, device: torch.device, one_by_one: bool) -> Layout:
    places, singles, rows, written = [], [], [], []
    row = 0
    for span in plan.spans:
        slots = _slots(span, column)
        written.append(slots[span.start :])
        if len(span.tokens) == 1 and not one_by_one:
            singles.append(span)
            rows.append(row)
        else:
            places.append(Place(slice(row, row + len(span.tokens)), span.start, torch.from_numpy(slots).to(device)))
        row += len(span.tokens)
    together = None
    if singles:
        positions = torch.tensor([span.start for span in singles], device=device)
        together = Singles(torch.tensor(rows, device=device) if places else None, positions, page_table(singles, column).to(device))
    return Layout(torch.from_numpy(np.concatenate(written)).to(device), tuple(places), together)


def page_table(spans: Sequence[Span], column: Column) -> Tensor:
    """A group's pages that each span's sequence has come to, [R, pages]: as many columns as the longest needs."""
    used = [span.start // PAGE_TOKENS + 1 for span in spans]
    table = np.zeros((len(spans), max(used)), np.int64)
    for row, span, count in zip(table, spans, used, strict=True):
        row[:count] = column.of(span)[:count]
    return torch.from_numpy(table)


def _slots(span: Span, column: Column) -> NDArray[np.int64]:
    positions = np.arange(span.start + len(span.tokens))
    return column.of(span)[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS


def check_cache(kv_cache: str, dtype: torch.dtype) -> None:
    """The cache holds what is computed in. `UsageError` for another format."""
    computed = str(dtype).removeprefix("torch.")
    if kv_cache not in ("auto", computed):
        raise UsageError(
            f'kv_cache is "{kv_cache}"; the torch backend keeps keys and values in what it computes in, here {computed}. Leave it out, '
            "choose another dtype, or take the cpu backend, which also keeps them in 8 and 4 bits."
        )
