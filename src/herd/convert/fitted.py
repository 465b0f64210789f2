"""A weight in a block format whose scales were searched for, as a stream; several threads search."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.checkpoints.sources import ByRows, Bytes, Source, StoredTensor
from herd.dtypes import DType
from herd.errors import FileProblem
from herd.quant import dequantize, quantize_fitted

# Values that one thread has as float32 at a time.
THREAD_VALUES = 1 << 20


@dataclass(frozen=True, slots=True)
class Fitted(ByRows):
    """`importance` [columns]: how much an error in each column counts; None: all the same."""

    tensor: Source
    dtype: DType
    importance: NDArray[np.float32] | None
    pool: ThreadPoolExecutor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.tensor.tensors

    def read(self, first: int, last: int) -> Bytes:
        columns = self.shape[-1]
        step = max(1, THREAD_VALUES // columns)
        out = np.empty((last - first, self.dtype.row_bytes(columns)), np.uint8)

        def fit(at: int) -> None:
            data = self.tensor.read(at, min(at + step, last))
            values = dequantize(self.tensor.dtype, data, (len(data), columns))
            out[at - first : at - first + len(data)] = quantize_fitted(self.dtype, values, self.importance)

        try:
            list(self.pool.map(fit, range(first, last, step)))
        except FileProblem as problem:
            raise FileProblem(f"{self.tensors[0].name}: {problem}") from problem
        return out
