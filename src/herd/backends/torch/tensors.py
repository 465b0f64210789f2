"""From stored weights to tensors on a device.

Plain weights become tensors of the type that is computed in: the bytes of the file themselves where they are already that, on a
CPU without a copy. Vectors (norms, biases, gates) stay in 32 bits. Block-quantised matrices stay as stored and are decoded each
time they are used; the first of them are kept decoded, as long as `keep_bytes` lasts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.backends.torch.blocks import decode
from herd.dtypes import BF16, F16, F32, DType
from herd.models.weights import Adapted, Blocks, Dense, Matrix

PLAIN: Mapping[DType, torch.dtype] = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


class Tensors:
    """Gives the tensor of a leaf, in the type `dtype` on `device`. Leaves are told apart by identity. `keep_bytes` bounds
    `decoded_bytes`, those of what is kept decoded beside the stored weights."""

    def __init__(self, device: torch.device, dtype: torch.dtype, keep_bytes: int = 0) -> None:
        self.device = device
        self.dtype = dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.keep_bytes = keep_bytes
        self._placed: dict[int, tuple[Dense | Blocks, Tensor]] = {}
        self._decoded: dict[int, Tensor] = {}
        self.decoded_bytes = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of all weights on the device, a mapped file's own included."""
        return sum(tensor.nbytes for _, tensor in self._placed.values())

    def place(self, leaf: Matrix) -> None:
        """Brings a weight to the device, if it is not there."""
        for part in parts(leaf):
            if id(part) not in self._placed:
                self._placed[id(part)] = (part, self._on_device(part))

    def bind(self, leaf: Dense, tensor: Tensor) -> None:
        """Takes `tensor` for this leaf's values from now on: a parameter that is trained."""
        assert tuple(tensor.shape) == tuple(leaf.shape), "a tensor of the leaf's shape"
        self._placed[id(leaf)] = (leaf, tensor)

    def keep(self, leaf: Dense | Blocks, values: Tensor) -> None:
        """Takes `values`, in the type that is computed in, for this leaf's from now on: in the place of plain ones, beside blocks."""
        assert tuple(values.shape) == tuple(leaf.shape) and values.dtype == self.dtype, "the leaf's values"
        self.forget(leaf)
        if isinstance(leaf, Dense):
            self._placed[id(leaf)] = (leaf, values)
        else:
            self.place(leaf)
            self._decoded[id(leaf)] = values
            self.decoded_bytes += values.nbytes

    def forget(self, leaf: Matrix) -> None:
        """Gives back what the device holds of a weight."""
        for part in parts(leaf):
            self._placed.pop(id(part), None)
            if (kept := self._decoded.pop(id(part), None)) is not None:
                self.decoded_bytes -= kept.nbytes

    def clear(self) -> None:
        self._placed.clear()
        self._decoded.clear()
        self.decoded_bytes = 0

    def get(self, leaf: Dense | Blocks) -> Tensor:
        """The values of `leaf`, in its shape and in the type that is computed in."""
        tensor = self._tensor(leaf)
        if isinstance(leaf, Dense):
            return tensor.to(self.dtype)
        kept = self._decoded.get(id(leaf))
        if kept is not None:
            return kept
        values = decode(leaf.dtype, tensor, self.dtype)
        if self.decoded_bytes + values.nbytes <= self.keep_bytes:
            self._decoded[id(leaf)] = values
            self.decoded_bytes += values.nbytes
        return values

    def vector(self, leaf: Dense) -> Tensor:
        """The values of a norm, a bias or a gate, in 32 bits or more."""
        return self._tensor(leaf).to(self.wide)

    def rows(self, leaf: Dense | Blocks, index: Tensor) -> Tensor:
        """Some rows of a matrix in 32 bits or more; only those are decoded."""
        tensor = self._tensor(leaf)
        if isinstance(leaf, Dense):
            return torch.nn.functional.embedding(index, tensor).to(self.wide)
        return decode(leaf.dtype, tensor.index_select(0, index), self.wide)

    def expert(self, leaf: Matrix, index: int | Tensor) -> Tensor:
        """One of the stacked matrices [E, out, in], or those at `index` [n] -> [n, out, in]."""
        assert not isinstance(leaf, Adapted), "experts have no adapters"
        chosen = self._tensor(leaf)[index]
        return decode(leaf.dtype, chosen, self.dtype) if isinstance(leaf, Blocks) else chosen.to(self.dtype)

    def is_kept(self, leaf: Dense | Blocks) -> bool:
        """Whether `get` has nothing to decode."""
        return isinstance(leaf, Dense) or id(leaf) in self._decoded

    def _tensor(self, leaf: Dense | Blocks) -> Tensor:
        held = self._placed.get(id(leaf))
        if held is None:
            self.place(leaf)
            held = self._placed[id(leaf)]
        return held[1]

    def _on_device(self, leaf: Dense | Blocks) -> Tensor:
        stored = as_stored(leaf)
        if isinstance(leaf, Blocks):
            return stored.to(self.device)
        return stored.to(self.device).to(self.wide if len(leaf.shape) == 1 else self.dtype)


def parts(leaf: Matrix) -> tuple[Dense | Blocks, ...]:
    """The stored tensors that a weight is made of."""
    return (leaf.base, leaf.down, leaf.up) if isinstance(leaf, Adapted) else (leaf,)


def as_stored(leaf: Dense | Blocks) -> Tensor:
    """The leaf's own bytes as a tensor on the CPU, not copied if they lie in one piece: a plain tensor, or uint8 [..., row bytes].
    Not to be written to."""
    data: Any = leaf.data
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a mapped file cannot be written to; nobody does
        stored = torch.from_numpy(flat)
    if isinstance(leaf, Blocks):
        return stored.reshape(*leaf.shape[:-1], leaf.dtype.row_bytes(leaf.shape[-1]))
    if flat.ctypes.data % leaf.dtype.block_bytes:
        stored = stored.clone()
    return stored.view(PLAIN[leaf.dtype]).reshape(leaf.shape)
