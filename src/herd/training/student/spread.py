"""Documents whose tokens lie in several processes: each computes a stretch of the packed row, and attends to keys and values of all.

    k_TKH, v_TKH of a stretch -> those of all stretches -> attention of this stretch's queries        on the way back: sums, and its part

Everything but attention looks at one token at a time, so weights, gradients and losses are as if processes had documents of their own:
sums over processes. Sums go through whole tensors with zeros where others are, which any network of processes can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from herd.backends.torch.pages import Opened
from herd.errors import UsageError
from herd.models.ops import Window
from herd.records import dataclass
from herd.training.student.attention import attended, attended_backward
from herd.training.student.batches import Batch


@dataclass(frozen=True, slots=True)
class Context:
    """This process's part, `index` of `count`. total: the sum of a tensor over the processes that share documents, written over it."""

    index: int
    count: int
    total: Callable[[Tensor], Tensor]

    def stretch(self, batch: Batch) -> Batch:
        """The tokens that this process computes of a batch. `UsageError` when there are fewer than two for each process."""
        if batch.num_tokens < 2 * self.count:
            raise UsageError(f"parallel.context is {self.count}; {batch.num_tokens} tokens are too few to share.", param="parallel.context")
        first, last = (batch.num_tokens * number // self.count for number in (self.index, self.index + 1))
        return batch.part(first, last, (batch.rows_R >= first) & (batch.rows_R < last))


@dataclass(frozen=True, slots=True)
class Spread:
    """Takes the place of a layer's cache: tokens `first` to `last` of documents of these `lengths` are here."""

    lengths: tuple[int, ...]
    first: int
    last: int
    context: Context

    def attend(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float, window: Window | None, opened: Opened | None = None
    ) -> Tensor:
        """Causal attention inside each document -> [T, N, H] of the tokens here."""
        assert opened is None, "nobody reads a softmax that lies in several processes"
        k, v = (_Gathered.apply(self, x) for x in (k_TKH, v_TKH))  # type: ignore[no-untyped-call]
        y: Tensor = _Attended.apply(q_TNH, k, v, self, scale, window)  # type: ignore[no-untyped-call]
        return y

    def pieces(self) -> Iterator[tuple[slice, slice, int]]:
        """Of each document that has tokens here: their rows here, the rows of all that they may see, and the place of the first."""
        start = 0
        for length in self.lengths:
            begin, end = max(start, self.first), min(start + length, self.last)
            if begin < end:
                yield slice(begin - self.first, end - self.first), slice(start, end), begin - start
            start += length


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, spread: Spread, x: Tensor) -> Tensor:
        context.spread = spread
        whole = x.new_zeros(sum(spread.lengths), *x.shape[1:], dtype=torch.promote_types(x.dtype, torch.float32))
        whole[spread.first : spread.last] = x
        return spread.context.total(whole).to(x.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[None, Tensor]:
        spread, (gradient,) = context.spread, gradients
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True).contiguous()
        return None, spread.context.total(wide)[spread.first : spread.last].to(gradient.dtype)


class _Attended(torch.autograd.Function):
    """Of the forward the arguments are kept and nothing else."""

    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor, spread: Spread, scale: float, window: Window | None) -> Tensor:
        context.save_for_backward(q, k, v)
        context.of = (spread, scale, window)
        y = torch.empty_like(q)
        for here, seen, first in spread.pieces():
            y[here] = attended(_wide(q[here]), _wide(k[seen]), _wide(v[seen]), scale, window, first).to(y.dtype)
        return y

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Any, ...]:
        spread, scale, window = context.of
        q, k, v = context.saved_tensors
        for_q = torch.empty_like(q)
        for_k, for_v = (torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
        for here, seen, first in spread.pieces():
            mine, keys, values, dy = (_wide(x) for x in (q[here], k[seen], v[seen], gradients[0][here]))
            dq, dk, dv = attended_backward(mine, keys, values, dy, scale, window, first)
            for_q[here] = dq.to(q.dtype)
            for_k[seen] += dk
            for_v[seen] += dv
        return for_q, for_k.to(k.dtype), for_v.to(v.dtype), None, None, None


def _wide(x: Tensor) -> Tensor:
    """As a batch of one document, in 32 bits or more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))[None]
