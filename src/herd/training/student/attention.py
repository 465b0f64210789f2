"""Attention over packed documents under gradients: what a student's layers see in the place of a cache.

    native      CPU in 16 and 32 bits: kernels of our own (`native_attention.py`)
    blocked     CPU otherwise: queries in blocks over the keys that the block can see at all; the query heads that share a kv head are
                rows of one product; of the softmax nothing is kept, it is made again on the way back
    flexible    CUDA: torch's FlexAttention over all documents at once (`flexible.py`)
    one by one  any other device, a GPU without Triton, or when somebody wants to read the softmax: `documents.Documents`

Documents of one length are taken together. A token sees its own document only, of it what stands before, and of that what the
layer's window lets it see. Sums and softmaxes are in 32 bits or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from herd.backends.torch.attention import first_seen, visible
from herd.backends.torch.documents import Documents
from herd.backends.torch.pages import Opened
from herd.models.ops import Window
from herd.training.student.native_attention import attends_natively, native_attention

BLOCK_ROWS = 128
"""Queries of a block: enough for products to be fast, few enough that little above the diagonal is computed."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Takes the place of a layer's cache: `lengths` of the documents, in order. `masks` are kept for all layers of a step."""

    lengths: tuple[int, ...]
    masks: dict[Window | None, Any] = field(default_factory=dict)

    def attend(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float, window: Window | None, opened: Opened | None = None
    ) -> Tensor:
        """Causal attention inside each document -> [T, N, H]."""
        if opened is None and attends_natively(q_TNH):
            return native_attention(q_TNH, k_TKH, v_TKH, self.lengths, scale, window)
        if opened is None and q_TNH.device.type == "cpu":
            y: Tensor = _Blocked.apply(q_TNH, k_TKH, v_TKH, self.lengths, scale, window)  # type: ignore[no-untyped-call]
            return y
        if opened is None and q_TNH.device.type == "cuda" and q_TNH.dtype != torch.float64 and find_spec("triton"):
            from herd.training.student.flexible import block_mask, compiled, flexible

            if window not in self.masks:
                self.masks[window] = block_mask(self.lengths, window, q_TNH.device)
            return flexible(q_TNH, k_TKH, v_TKH, scale, self.masks[window], compiled())
        return Documents(self.lengths).attend(q_TNH, k_TKH, v_TKH, scale, window, opened)


class _Blocked(torch.autograd.Function):
    """The CPU's way. Of the forward the arguments are kept and nothing else."""

    @staticmethod
    def forward(
        context: Any, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, lengths: tuple[int, ...], scale: float, window: Window | None
    ) -> Tensor:
        context.save_for_backward(q_TNH, k_TKH, v_TKH)
        context.of = (lengths, scale, window)
        y_TNH = torch.empty_like(q_TNH)
        for group in groups(lengths):
            q, k, v = (_together(x, group) for x in (q_TNH, k_TKH, v_TKH))
            y_TNH[group.rows()] = attended(q, k, v, scale, window).to(y_TNH.dtype)
        return y_TNH

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        lengths, scale, window = context.of
        q_TNH, k_TKH, v_TKH = context.saved_tensors
        for_qkv = [torch.empty_like(x) for x in (q_TNH, k_TKH, v_TKH)]
        for group in groups(lengths):
            q, k, v, dy = (_together(x, group) for x in (q_TNH, k_TKH, v_TKH, gradients[0]))
            found = attended_backward(q, k, v, dy, scale, window)
            for whole, part in zip(for_qkv, found, strict=True):
                whole[group.rows()] = part.to(whole.dtype)
        return for_qkv[0], for_qkv[1], for_qkv[2], None, None, None


@dataclass(frozen=True, slots=True)
class Group:
    """Documents of one length, by their first rows."""

    length: int
    starts: tuple[int, ...]

    def rows(self) -> slice | Tensor:
        """Where their tokens lie: a stretch, or numbers of rows."""
        count, first = len(self.starts), self.starts[0]
        if all(start == first + index * self.length for index, start in enumerate(self.starts)):
            return slice(first, first + count * self.length)
        return (torch.tensor(self.starts)[:, None] + torch.arange(self.length)).flatten()


@lru_cache(maxsize=64)
def groups(lengths: tuple[int, ...]) -> tuple[Group, ...]:
    """The documents by length."""
    found: dict[int, list[int]] = {}
    start = 0
    for length in lengths:
        found.setdefault(length, []).append(start)
        start += length
    return tuple(Group(length, tuple(starts)) for length, starts in found.items())


def _together(x_TNH: Tensor, group: Group) -> Tensor:
    """The documents of a group as a batch, wide [B, L, heads, H]."""
    wide = torch.promote_types(x_TNH.dtype, torch.float32)
    return x_TNH[group.rows()].to(wide).reshape(len(group.starts), group.length, *x_TNH.shape[1:])


def attended(q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, scale: float, window: Window | None, first: int = 0) -> Tensor:
    """-> [B L, N, H]. Queries are those of tokens `first` and after; keys and values begin with token 0."""
    batch, length, heads, _ = q_BLNH.shape
    kv_heads = k_BLKH.shape[2]
    k, v = _by_head(k_BLKH), _by_head(v_BLKH)
    y_BLNH = torch.empty_like(q_BLNH)
    for rows, keys in blocks(first + length, window, first):
        here = slice(rows.start - first, rows.stop - first)
        q = _stacked(q_BLNH[:, here] * scale, kv_heads)
        y = torch.bmm(_softmax(q, k[:, keys], rows, keys, window), v[:, keys])
        y_BLNH[:, here] = _unstacked(y, batch, heads)
    return y_BLNH.flatten(0, 1)


def attended_backward(
    q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor, dy_BLNH: Tensor, scale: float, window: Window | None, first: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """What comes back to queries, keys and values, each [B L, heads, H]. With P the softmax and dP = dy v^T:
    dS = P (dP - sum(P dP)), dq = scale dS k, dk = scale dS^T q, dv = P^T dy."""
    batch, length, heads, _ = q_BLNH.shape
    kv_heads = k_BLKH.shape[2]
    k, v = _by_head(k_BLKH), _by_head(v_BLKH)
    dq_BLNH, dk, dv = torch.empty_like(q_BLNH), torch.zeros_like(k), torch.zeros_like(v)
    for rows, keys in blocks(first + length, window, first):
        here = slice(rows.start - first, rows.stop - first)
        q, dy = _stacked(q_BLNH[:, here] * scale, kv_heads), _stacked(dy_BLNH[:, here], kv_heads)
        p = _softmax(q, k[:, keys], rows, keys, window)
        dv[:, keys].baddbmm_(p.transpose(1, 2), dy)
        dp = torch.bmm(dy, v[:, keys].transpose(1, 2))
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
        dk[:, keys].baddbmm_(ds.transpose(1, 2), q)
        dq_BLNH[:, here] = _unstacked(torch.bmm(ds, k[:, keys]), batch, heads).mul_(scale)
    dk_BLKH, dv_BLKH = (x.reshape(batch, kv_heads, k.shape[1], -1).transpose(1, 2) for x in (dk, dv))
    return dq_BLNH.flatten(0, 1), dk_BLKH.flatten(0, 1), dv_BLKH.flatten(0, 1)


def blocks(length: int, window: Window | None, first: int = 0) -> Iterator[tuple[slice, slice]]:
    """Blocks of the queries from `first` on, each with the stretch of keys that any of them sees."""
    for begin in range(first, length, BLOCK_ROWS):
        end = min(begin + BLOCK_ROWS, length)
        yield slice(begin, end), slice(int(first_seen(torch.tensor(begin), window)), end)


def _softmax(q_Xth: Tensor, k_Xsh: Tensor, rows: slice, keys: slice, window: Window | None) -> Tensor:
    """How much each (scaled) query takes of each key: [B K, G t, s]."""
    scores = torch.bmm(q_Xth, k_Xsh.transpose(1, 2))
    per_head = scores.view(len(scores), -1, rows.stop - rows.start, keys.stop - keys.start)
    if window is None:
        # Only the last keys, those of the block itself, can lie after a query.
        per_head[..., rows.start - keys.start :] += _unseen(rows, rows, None, scores.dtype)
    else:
        per_head += _unseen(rows, keys, window, scores.dtype)
    return torch.softmax(scores, dim=-1)


def _unseen(rows: slice, keys: slice, window: Window | None, dtype: torch.dtype) -> Tensor:
    """What is added to scores [t, s]: 0 where the query sees the key, else minus infinity."""
    if window is None:
        return _triangle(rows.stop - rows.start, dtype)
    seen = visible(torch.arange(rows.start, rows.stop), torch.arange(keys.start, keys.stop), window)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)


@lru_cache(maxsize=2 * BLOCK_ROWS)
def _triangle(rows: int, dtype: torch.dtype) -> Tensor:
    return torch.full((rows, rows), -torch.inf, dtype=dtype).triu_(1)


def _by_head(x_BLKH: Tensor) -> Tensor:
    """[B, L, K, H] -> [B K, L, H] in one piece."""
    return x_BLKH.transpose(1, 2).flatten(0, 1).contiguous()


def _stacked(x_BtNH: Tensor, kv_heads: int) -> Tensor:
    """[B, t, N, H] -> [B K, G t, H]: query heads that share a kv head one under the other."""
    batch, _, _, width = x_BtNH.shape
    return x_BtNH.transpose(1, 2).reshape(batch * kv_heads, -1, width)


def _unstacked(y_Xth: Tensor, batch: int, heads: int) -> Tensor:
    """[B K, G t, H] -> [B, t, N, H]."""
    return y_Xth.reshape(batch, heads, -1, y_Xth.shape[-1]).transpose(1, 2)
