"""Reading and replacing values on their way: a program traced with taps, run in parts.

Wherever a watched value is complete the program stops; Python reads it, or writes what a patch makes of it. The softmax of a
layer is made in numpy from its queries and the cache, for the layers that are asked for; where it is patched, what the layer's
heads read is made from it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd import _core
from herd.backends.base import NO_PAGE, PAGE_TOKENS, Plan, Span, Watch
from herd.backends.cpu.cached import read_page
from herd.backends.cpu.lower import Mark
from herd.backends.cpu.trace import Attention, Tap
from herd.backends.reference.ops import attention_weights, patched, read_values
from herd.models.architecture import CacheShape
from herd.models.cache_groups import CacheGroups

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WatchedProgram:
    """A program with taps at `names`."""

    program: _core.Program
    marks: tuple[Mark, ...]
    names: frozenset[str]
    cache: _core.Cache
    shape: CacheShape
    form: str
    groups: CacheGroups

    def run(self, plan: Plan) -> tuple[list[int], dict[str, Any]]:
        """The step that was begun. Rows of logits that are not finite, and what was read. What a patch raises goes through."""
        assert plan.watch is not None
        program, values = self.program, dict[str, Any]()
        for mark in self.marks:
            if mark.node.name not in self.names:
                continue
            program.advance(mark.end)
            if isinstance(mark.node, Tap):
                self._tap(mark, mark.node, plan.watch, values)
            else:
                self._softmax(mark, mark.node, plan, plan.watch, values)
        program.advance(program.num_instructions)
        return program.bad_rows(), values

    def _tap(self, mark: Mark, node: Tap, watch: Watch, values: dict[str, Any]) -> None:
        rows = np.asarray(self.program.rows(mark.buffer))
        value = rows if node.num_heads is None else rows.reshape(len(rows), node.num_heads, -1)
        if node.name in watch.patch:
            value = patched(node.name, watch, value.copy())
            rows[...] = value.reshape(rows.shape)
        if node.name in watch.read:
            values[node.name] = value.copy()

    def _softmax(self, mark: Mark, node: Attention, plan: Plan, watch: Watch, values: dict[str, Any]) -> None:
        queries, out = (np.asarray(self.program.rows(buffer)) for buffer in (mark.queries, mark.buffer))
        read: list[Floats] = []
        row = 0
        for span in plan.spans:
            rows = slice(row, row + len(span.tokens))
            keys, cached = self._cached(node.layer, span)
            q_TNH = queries[rows].reshape(len(span.tokens), self.shape.num_heads, -1)
            weights = attention_weights(q_TNH, keys, span.start, node.scale, node.window)
            weights_NTS = weights.reshape(-1, *weights.shape[2:])
            if node.name in watch.patch:
                weights_NTS = patched(node.name, watch, weights_NTS)
                out[rows] = read_values(weights_NTS.reshape(weights.shape), cached).reshape(len(span.tokens), -1)
            read.append(np.array(weights_NTS, np.float32))
            row += len(span.tokens)
        if node.name in watch.read:
            values[node.name] = read

    def _cached(self, layer: int, span: Span) -> tuple[Floats, Floats]:
        """Keys and values [S, K, H] of the sequence up to the span's last token; zeros where it has no page."""
        length, groups = span.start + len(span.tokens), self.groups.count
        kv_heads, width = self.shape.num_kv_heads, self.shape.head_width
        group = next(group for group, layers in enumerate(self.groups.layers) if layer in layers)
        own = span.pages[group : self.groups.blocks_for(length) * groups : groups]
        nothing = (np.zeros((PAGE_TOKENS, kv_heads, width), np.float32),) * 2
        found = (
            nothing if page == NO_PAGE else read_page(np.asarray(self.cache.page(layer, page)), self.form, kv_heads, width) for page in own
        )
        keys, values = zip(*found, strict=True)
        return np.concatenate(keys)[:length], np.concatenate(values)[:length]
