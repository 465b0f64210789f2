"""What a step of herd's own trainer takes on a processor, by part: the sums behind `herd plan train --device this-machine`.

Parameters, gradients and both moments are float32; a frozen base is kept as it is multiplied where memory is ample (`joined.py`), blocks
beside what was decoded of them. Tensors lie in pages of their own (`training/student/allocation.py`), so that what is resident is what is
alive at the fullest moment (`step.py`), a thirty-second more at most, and what was measured once: a process with torch, and what its
products keep.
"""

from __future__ import annotations

from herd.dtypes import Q4_0
from herd.models.architecture import Config, architecture_of
from herd.models.weights import stored_bytes
from herd.planner.step import WIDE, Learning, decoded_bytes, is_in_blocks, joined_bytes, learned_bytes, moments, text_of
from herd.records import dataclass

PROGRAM_BYTES = 256_000_000
"""Of a process with torch before a model is there. Recomputing layers loads 75 MB more of torch. Measured 2026-11-21 with torch 2.13."""
RECOMPUTING_BYTES = 75_000_000
PRODUCTS_BYTES = 20_000_000
"""What products keep for their rearranged factors, and small objects: so much two steps took beside their tensors, measured 2026-11-22 with
two threads."""
KEPT_SHARE = 4
"""A frozen base may be kept as it is multiplied in so large a part of the memory that is free: one in four (`api/tuning.py`)."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes at the moment of a step that takes most, and which that is. `gradients`: those that are there then."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    products: int
    when: str

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.products


def taken(config: Config, learning: Learning) -> Taken:
    """What a step takes besides the program. With all weights learned the encoder of pictures is among them, without gradients where the
    data shows none."""
    trained = learned_bytes(text_of(config), learning)
    if learning.rank == 0:
        weights = WIDE * sum(spec.count for spec in architecture_of(config).tensors(config))
    else:
        weights = _frozen_bytes(config, learning) + trained
    fullest = max(moments(config, learning), key=lambda moment: moment.total)
    return Taken(weights, fullest.gradients, 2 * trained, fullest.activations, PRODUCTS_BYTES, fullest.when)


def program_bytes(recompute: bool) -> int:
    """What the process takes besides."""
    return PROGRAM_BYTES + (RECOMPUTING_BYTES if recompute else 0)


def _frozen_bytes(config: Config, learning: Learning) -> int:
    """A frozen base: plain weights in float32; matrices in blocks as those, and beside them what of them is kept decoded,
    with columns for updates."""
    specs = text_of(config)
    if not learning.blocks:
        return WIDE * sum(spec.count for spec in specs) + min(joined_bytes(specs, learning), learning.keep_bytes)
    plain = WIDE * sum(spec.count for spec in specs if not is_in_blocks(spec))
    stored = sum(stored_bytes(Q4_0, spec.shape) for spec in specs if is_in_blocks(spec))
    return plain + stored + min(decoded_bytes(specs) + joined_bytes(specs, learning), learning.keep_bytes)
