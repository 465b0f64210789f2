"""What a weight is: its declaration (`TensorSpec`) and, once loaded, its leaf (`Dense`, `Blocks`, `Adapted`).

A model module declares every weight once with `tensors(cfg)`; loading, random initialisation, conversion, adapter targets
and memory sums all read that list. In memory a leaf keeps the bytes of the file, unconverted: `data` is a buffer of
`rows * row_bytes` bytes, row-major, exactly as `herd.quant` defines the format. Backends turn leaves into what they compute with.

This module knows no numpy: `data` is anything that speaks the buffer protocol (in practice a mapped uint8 array).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

from herd.dtypes import DType
from herd.errors import UsageError
from herd.records import dataclass


class Kind(Enum):
    """What a weight is for. Quantisers, adapters and optimisers choose by kind and never by name. `ROUTER`: a small matrix whose
    rounding would send tokens to other experts."""

    EMBEDDING = "embedding"
    MATRIX = "matrix"
    EXPERTS = "experts"
    ROUTER = "router"
    HEAD = "head"
    NORM = "norm"
    BIAS = "bias"
    GATE = "gate"

    @property
    def is_vector(self) -> bool:
        """Whether weights of this kind have one axis: they are never quantised or adapted."""
        return self in (Kind.NORM, Kind.BIAS, Kind.GATE)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The declaration of one weight. Matrices are [out, in]: y = x W^T; the stacked matrices of experts [experts, out, in].

    `rotary_heads` is the number of heads whose rows are in rotary order: such rows are permuted when a file keeps the
    two halves of a head apart (Hugging Face) instead of interleaving them (Meta, GGUF, and we).
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = Kind.MATRIX
    rotary_heads: int = 0

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Dense:
    """A weight in a plain format (f32, f16, bf16)."""

    dtype: DType
    shape: tuple[int, ...]
    data: Any

    @property
    def num_bytes(self) -> int:
        return stored_bytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix in a block-quantised format; each row holds whole blocks."""

    dtype: DType
    shape: tuple[int, ...]
    data: Any

    @property
    def num_bytes(self) -> int:
        return stored_bytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Adapted:
    """A matrix with a low-rank update (LoRA, arXiv 2106.09685): y = x W^T + scale * (x down^T) up^T.

    `down` is [rank, in], `up` is [out, rank].
    """

    base: Dense | Blocks
    down: Dense
    up: Dense
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def num_bytes(self) -> int:
        return self.base.num_bytes + self.down.num_bytes + self.up.num_bytes


@dataclass(frozen=True, slots=True)
class Update:
    """The low-rank update of one matrix, apart from it: `down` is [rank, in], `up` is [out, rank]."""

    down: Dense
    up: Dense
    scale: float

    def over(self, base: Dense | Blocks | Adapted, name: str) -> Adapted:
        """The adapted matrix. `UsageError` for one that is adapted already."""
        if isinstance(base, Adapted):
            raise UsageError(f"{name} carries an adapter already; merge it first.")
        return Adapted(base, self.down, self.up, self.scale)

    @property
    def num_bytes(self) -> int:
        return self.down.num_bytes + self.up.num_bytes


Vector = Dense
Matrix = Dense | Blocks | Adapted
Leaf = Callable[[str], Matrix]
"""How a model module asks for its weights: by the name in `tensors(cfg)`."""


def stored(dtype: DType, shape: tuple[int, ...], data: Any) -> Dense | Blocks:
    """The leaf for `data` of this format."""
    return Blocks(dtype, shape, data) if dtype.is_block else Dense(dtype, shape, data)


def stored_bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this shape. The last axis is the one that blocks run along."""
    return math.prod(shape[:-1]) * dtype.row_bytes(shape[-1])
