"""Which layers' keys and values lie in pages together: those that look back equally far.

Layers are divided into groups of equally many, all of a group with the same window. A page holds the keys and values of some
consecutive tokens of one sequence for one group; as groups have equally many layers, any of them can have any page.

    Llama 4    12 layers that see everything, 36 that see their chunk    1 + 3 groups of 12 layers
    Llama 3    all layers see everything                                 1 group: a page holds all layers

A *block* is so many consecutive tokens as a page holds, counted from a sequence's first. A sequence has a page for each group in each
block, but for blocks that no later token of the group's layers can see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from herd.models.architecture import CacheShape
from herd.models.ops import Window
from herd.records import dataclass


@dataclass(frozen=True, slots=True)
class CacheGroups:
    """`windows`: of each group, those without first. `layers`: of each group, its layers in order. `page_tokens`: tokens of a block."""

    page_tokens: int
    windows: tuple[Window | None, ...] = (None,)
    layers: tuple[tuple[int, ...], ...] = ((),)

    @property
    def count(self) -> int:
        return len(self.windows)

    @property
    def has_windows(self) -> bool:
        return any(window is not None for window in self.windows)

    def group_of_layer(self) -> list[int]:
        """The group of each layer."""
        groups = {layer: group for group, layers in enumerate(self.layers) for layer in layers}
        return [groups[layer] for layer in range(len(groups))]

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_tokens)

    def first_block(self, group: int, position: int) -> int:
        """The first block of which a group still needs its page when the token at `position` is computed next. Where `position` lies in
        its block makes no difference."""
        window = self.windows[group]
        return 0 if window is None else window.first(position - position % self.page_tokens) // self.page_tokens

    def most_blocks(self, group: int, step_tokens: int) -> int | None:
        """How many blocks from the first one on a group needs pages of, at most, for a step of up to so many tokens and the token after
        it; None: of all."""
        window = self.windows[group]
        return None if window is None else self.blocks_for(window.tokens - 1) + self.blocks_for(step_tokens + self.page_tokens)

    def pages_for(self, num_tokens: int, step_tokens: int) -> int:
        """The most pages that a sequence of `num_tokens` has at a time, if it is computed in steps of up to `step_tokens`; as many as it
        has blocks at least, so that nothing that is sized by pages is too short for its blocks."""
        return self._pages(self.blocks_for(num_tokens), step_tokens)

    def longest(self, num_pages: int, step_tokens: int) -> int:
        """The most tokens of a sequence that needs no more than so many pages."""
        low, high = 0, num_pages
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._pages(middle, step_tokens) <= num_pages else (low, middle - 1)
        return low * self.page_tokens

    def _pages(self, blocks: int, step_tokens: int) -> int:
        most = (self.most_blocks(group, step_tokens) for group in range(self.count))
        return max(blocks, sum(blocks if limit is None else min(blocks, limit) for limit in most))


def one_group(num_layers: int, page_tokens: int) -> CacheGroups:
    """All layers together: their pages are kept until the sequence ends."""
    return CacheGroups(page_tokens, (None,), (tuple(range(num_layers)),))


def cache_groups(shapes: Sequence[CacheShape], page_tokens: int) -> CacheGroups:
    """How the layers of a model that keeps these are divided. Layers that do not keep equally much of a token are one group, without a
    window."""
    if len({(shape.num_kv_heads, shape.head_width) for shape in shapes}) != 1:
        return one_group(len(shapes), page_tokens)
    of_window: dict[Window | None, list[int]] = {}
    for layer, shape in enumerate(shapes):
        of_window.setdefault(shape.window, []).append(layer)
    size = math.gcd(*map(len, of_window.values()))
    order = sorted(of_window, key=lambda window: (window is not None, window.tokens if window else 0))
    cut = [(window, tuple(of_window[window][at : at + size])) for window in order for at in range(0, len(of_window[window]), size)]
    return CacheGroups(page_tokens, tuple(window for window, _ in cut), tuple(layers for _, layers in cut))
