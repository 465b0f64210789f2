"""What a step of herd's own trainer keeps on a processor, by part: the sums behind `herd plan train --device this-machine`.

It follows `training/`: parameters, gradients and both moments are float32, and so are activations; a frozen base is kept as it is
multiplied where memory is ample (`joined.py`), blocks beside what was decoded of them. Of a layer are kept what goes into each norm and
each product, queries, keys and values, gate and up (`fused.py`, `attention.py`); of the logits a chunk lives at a time
(`cross_entropy.py`). Gradients are there while a later pack of the step is computed, activations only until they have been walked back.
"""

from __future__ import annotations

import math

from herd.dtypes import F32, Q4_0
from herd.models.architecture import Config, architecture_of
from herd.models.sizes import layer_widths, part_of
from herd.models.weights import Kind, TensorSpec, stored_bytes
from herd.records import dataclass

WIDE = F32.block_bytes
CHUNK_BYTES, MIN_CHUNK_ROWS = 48 << 20, 16
PROGRAM_BYTES = 256_000_000
"""Of a process with torch before a model is there. Recomputing layers loads 75 MB more of torch. Measured with torch 2.13."""
RECOMPUTING_BYTES = 75_000_000
HEAP_LAYERS, HEAP_LAYERS_JOINED, HEAP_TABLES = 8, 5, 2
"""By how much the heap outgrows what is alive: the activations of so many layers (fewer where products are joined), and so many tables
where the table is learned. The process keeps what it frees (`training/student/allocation.py`), and glibc finds no room for an aligned
piece where one of the same size has been. Fitted to eight steps of 256 to 1024 tokens with glibc 2.36, all of width 576; joined to one
of them. Too much for LoRA of a width of 2048 (docs/how-to/plan.md)."""
KEPT_SHARE = 4
"""A frozen base may be kept as it is multiplied in so large a part of the memory that is free: one in four (`api/tuning.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """A step: what is learned, of which the packs are. `rank` 0: all weights. `blocks`: frozen matrices are stored in Q4_0. `tokens` of
    its largest pack; `packs` of them in a step; `keep_bytes` for a frozen base as it is multiplied."""

    rank: int
    blocks: bool
    tokens: int
    packs: int
    recompute: bool
    keep_bytes: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes at the moment of a step that takes most. `gradients`: those that are there then; `heap`: freed and not given back."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    heap: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.heap


def taken(config: Config, learning: Learning) -> Taken:
    """What a step takes besides the program, as the larger of two moments: the way back begins, with all activations there; or it ends,
    with all gradients."""
    specs = [spec for spec in architecture_of(config).tensors(config) if part_of(spec) != "vision"]
    matrices = [spec for spec in specs if spec.kind is Kind.MATRIX and spec.name.startswith(("layers.", "crossing."))]
    adapters = sum(learning.rank * sum(spec.shape) for spec in matrices)
    count = sum(spec.count for spec in specs)
    table = max(spec.count for spec in specs if spec.kind in (Kind.EMBEDDING, Kind.HEAD))
    learns_all = learning.rank == 0
    trained = count if learns_all else adapters
    weights = WIDE * count if learns_all else _frozen_bytes(specs, learning) + WIDE * adapters
    forward, within = activation_bytes(config, learning)
    learned_table = WIDE * table if learns_all else 0
    piece = logits_bytes(config, learning.tokens)
    heap = _heap_bytes(config, learning) + HEAP_TABLES * learned_table
    begins = forward + learned_table + max(2 * piece, within, learned_table)
    ends = learned_table
    gradients = WIDE * trained
    earlier = gradients if learning.packs > 1 else 0
    optimizer = 2 * WIDE * trained
    at_end = heap - min(heap, gradients) // 2  # gradients came to lie in some of what was freed: in half of it, as measured
    if begins + earlier + heap >= ends + gradients + at_end:
        return Taken(weights, earlier, optimizer, begins, heap)
    return Taken(weights, gradients, optimizer, ends, at_end)


def _heap_bytes(config: Config, learning: Learning) -> int:
    """Freed pieces of activations."""
    layers = HEAP_LAYERS_JOINED if _is_joined(learning) else HEAP_LAYERS
    return layers * WIDE * learning.tokens * max(4 * config.width + each.inside for each in layer_widths(config))


def _is_joined(learning: Learning) -> bool:
    """Whether matrices that read the same input are one product."""
    return learning.rank > 0 and learning.keep_bytes > 0 and not learning.recompute


def program_bytes(recompute: bool) -> int:
    """What the process takes besides."""
    return PROGRAM_BYTES + (RECOMPUTING_BYTES if recompute else 0)


def _frozen_bytes(specs: list[TensorSpec], learning: Learning) -> int:
    """A frozen base: plain weights in float32; matrices in blocks as those, and beside them what of them is kept decoded."""
    if not learning.blocks:
        return sum(WIDE * spec.count for spec in specs)
    in_blocks = [spec for spec in specs if spec.kind in (Kind.MATRIX, Kind.EXPERTS) and spec.shape[-1] % Q4_0.block == 0]
    plain = sum(WIDE * spec.count for spec in specs if spec not in in_blocks)
    stored = sum(stored_bytes(Q4_0, spec.shape) for spec in in_blocks)
    decoded = sum(WIDE * spec.count for spec in in_blocks)
    largest = max(WIDE * math.prod(spec.shape[-2:]) for spec in in_blocks)
    return plain + stored + (decoded if decoded <= learning.keep_bytes else learning.keep_bytes + largest)


def activation_bytes(config: Config, learning: Learning) -> tuple[int, int]:
    """(What the forward pass leaves for the way back, what exists besides while one layer is computed on that way.)"""
    layers = layer_widths(config)
    is_joined = _is_joined(learning)
    widths = [
        # An update keeps the few columns that it makes of its input. Products of joined matrices are one tensor, so that values hold on
        # to the queries and keys that they were made with.
        4 * config.width + each.inside + learning.rank * each.matrices + (each.turned if is_joined else 0)
        for each in layers
    ]
    walking = 4 * max(each.widest for each in layers) + 2 * config.width  # what comes back to the widest values, and to the stream
    if learning.recompute:
        walking += max(widths)
    kept = [config.width] * len(layers) if learning.recompute else widths
    per_token = sum(kept) + 3 * config.width  # the last norm, and its rows that predict something
    return WIDE * learning.tokens * per_token, WIDE * learning.tokens * walking


def logits_bytes(config: Config, tokens: int) -> int:
    """The logits that exist at a time. Their logarithms take as much again."""
    return WIDE * config.vocab_size * min(tokens, max(MIN_CHUNK_ROWS, CHUNK_BYTES // (WIDE * config.vocab_size)))
