"""From stored weights to numpy arrays in the type that the reference computes in.

A matrix is converted when it is first used. Converted arrays are kept as long as they fit in `keep_bytes` together, first
come first kept (a forward walks all matrices in the same order, so dropping the oldest would keep nothing); the others are
converted again in every step, one at a time. So memory is bounded by `keep_bytes` plus the largest matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.dtypes import BF16, F16, F32, DType
from herd.models.weights import Blocks, Dense
from herd.quant import dequantize, quantize

Floats = NDArray[np.floating[Any]]
KEEP_BYTES = 4 << 30


class Arrays:
    """Gives the array of a leaf. `dtype` is what is computed in; `matrix_dtype` (F16 or BF16), if given, is what plain
    matrices are rounded to first."""

    def __init__(self, dtype: np.dtype[Any], matrix_dtype: DType | None = None, keep_bytes: int = KEEP_BYTES) -> None:
        self._dtype = dtype
        self._matrix_dtype = matrix_dtype
        self._keep_bytes = keep_bytes
        self._kept: dict[int, tuple[Dense | Blocks, Floats]] = {}
        self.num_bytes = 0

    def get(self, leaf: Dense | Blocks) -> Floats:
        """The values of `leaf`, in its shape. Not to be written to."""
        held = self._kept.get(id(leaf))
        if held is not None:
            return held[1]
        array = self._convert(leaf)
        if not np.may_share_memory(array, _bytes(leaf.data)):
            if self.num_bytes + array.nbytes > self._keep_bytes:
                return array
            self.num_bytes += array.nbytes
        self._kept[id(leaf)] = (leaf, array)
        return array

    def rows(self, leaf: Dense | Blocks, indices: NDArray[np.int64]) -> Floats:
        """Some rows of a matrix, without converting the others."""
        if id(leaf) in self._kept:
            return self.get(leaf)[indices]
        stored = _bytes(leaf.data).reshape(leaf.shape[0], -1)[indices]
        return self._convert(type(leaf)(leaf.dtype, (len(indices), leaf.shape[1]), stored))

    def clear(self) -> None:
        """Forgets everything converted so far."""
        self._kept.clear()
        self.num_bytes = 0

    def _convert(self, leaf: Dense | Blocks) -> Floats:
        values = _values(leaf)
        if self._matrix_dtype is not None and isinstance(leaf, Dense) and len(leaf.shape) >= 2:
            values = rounded(values, self._matrix_dtype)
        return values.astype(self._dtype, copy=False)


def rounded(values: Floats, dtype: DType) -> NDArray[np.float32]:
    """`values` [..., columns] as a plain 16-bit format would keep them, in float32. What F16 cannot hold becomes infinite."""
    if dtype is F16:
        return values.astype(np.float16).astype(np.float32)
    assert dtype is BF16
    flat = values.reshape(-1, values.shape[-1]).astype(np.float32, copy=False)
    return dequantize(dtype, quantize(dtype, flat), flat.shape).reshape(values.shape)


def _values(leaf: Dense | Blocks) -> NDArray[np.float32]:
    if leaf.dtype is F32:
        return _bytes(leaf.data).view("<f4").reshape(leaf.shape)
    return dequantize(leaf.dtype, leaf.data, leaf.shape)


def _bytes(data: Any) -> NDArray[np.uint8]:
    """The stored bytes, flat; no copy when they lie in one piece."""
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
