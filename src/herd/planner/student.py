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
HEAP_SHARES = {
    "plain base": {False: 0.75, True: 0.95},
    "base in blocks": {False: 0.95, True: 0.5},
    "all weights": {False: 1.2, True: 0.9},
}
"""How much of everything that the layers make lies in holes of the heap, by what is learned over (large pieces are mapped alone but with a
plain base) and whether layers are made twice. A layer gives back much of what it makes while it goes, and the process keeps that
(`training/student/allocation.py`), but the next layer does not find all of it again (torch asks for aligned pieces, for which glibc wants
more room than one of the same size left): the heap grows with the number of layers, even where they are recomputed. Set with 21 steps of
widths 576, 1024 and 2048 with 2 to 24 layers and glibc 2.36; the same step differs by up to a tenth from one process to the next."""
ALONE_BYTES = 16 << 20
"""Gradients from this size on are mapped alone; smaller ones come to lie in holes of the heap, in half of what there is."""
PRODUCTS_BYTES = 27_000_000
"""What products keep for their rearranged factors: measured with two threads, of any larger size the same."""
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
    """Bytes at the moment of a step that takes most. `gradients`: those that are there then; `heap`: freed and not found again,
    and what products keep."""

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
    with all gradients. With all weights learned the encoder of pictures is among them, without gradients where the data shows none."""
    everything = list(architecture_of(config).tensors(config))
    specs = [spec for spec in everything if part_of(spec) != "vision"]
    learns_all = learning.rank == 0
    matrices = [spec for spec in specs if spec.kind is Kind.MATRIX and spec.name.startswith(("layers.", "crossing."))]
    adapters = sum(learning.rank * sum(spec.shape) for spec in matrices)
    trained = sum(spec.count for spec in specs) if learns_all else adapters
    weights = WIDE * sum(spec.count for spec in everything) if learns_all else _frozen_bytes(specs, learning) + WIDE * adapters
    table = WIDE * max(spec.count for spec in specs if spec.kind in (Kind.EMBEDDING, Kind.HEAD)) if learns_all else 0
    forward, within = activation_bytes(config, learning)
    begins = forward + table + max(2 * logits_bytes(config, learning.tokens), within, table)
    gradients, optimizer, holes = WIDE * trained, 2 * WIDE * trained, _holes(config, learning)
    earlier = gradients if learning.packs > 1 else 0
    small = sum(WIDE * spec.count for spec in specs if WIDE * spec.count < ALONE_BYTES) if learns_all else gradients
    left = holes - min(holes, small) // 2
    if begins + earlier + holes >= table + gradients + left:
        return Taken(weights, earlier, optimizer, begins, holes + PRODUCTS_BYTES)
    return Taken(weights, gradients, optimizer, table, left + PRODUCTS_BYTES)


def _holes(config: Config, learning: Learning) -> int:
    """What is freed and not found again."""
    made = WIDE * learning.tokens * sum(4 * config.width + each.inside for each in layer_widths(config))
    base = "all weights" if learning.rank == 0 else "base in blocks" if learning.blocks else "plain base"
    return int(HEAP_SHARES[base][learning.recompute] * made)


def _is_joined(learning: Learning) -> bool:
    """Whether matrices that read the same input are one product."""
    return learning.rank > 0 and learning.keep_bytes > 0 and not learning.recompute


def program_bytes(recompute: bool) -> int:
    """What the process takes besides."""
    return PROGRAM_BYTES + (RECOMPUTING_BYTES if recompute else 0)


def is_in_blocks(spec: TensorSpec) -> bool:
    """Whether a frozen base has this weight in blocks of four bits; tables of words and vectors stay plain."""
    return spec.kind in (Kind.MATRIX, Kind.EXPERTS) and spec.shape[-1] % Q4_0.block == 0


def _frozen_bytes(specs: list[TensorSpec], learning: Learning) -> int:
    """A frozen base: plain weights in float32; matrices in blocks as those, and beside them what of them is kept decoded."""
    if not learning.blocks:
        return sum(WIDE * spec.count for spec in specs)
    in_blocks = [spec for spec in specs if is_in_blocks(spec)]
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
