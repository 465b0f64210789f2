"""Attention itself: queries over keys and values that lie side by side, in one of two ways.

    fused   torch's scaled_dot_product_attention: CUDA, and 16 bits on a CPU (sums in 32 bits, one rounding)
    plain   products, softmax and products written out: 32 and 64 bits on a CPU, where torch's fused exponential may have fewer
            digits than the type; and wherever the softmax itself is wanted

Shapes: B sequences (or groups), t queries of each, s keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from herd.models.ops import Chunks, Sliding, Window

SCORES_BYTES = 64 << 20


def is_fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Which of the two ways is taken."""
    return device.type != "cpu" or dtype.itemsize == 2


def attend(q_BtNH: Tensor, k_BsKH: Tensor, v_BsKH: Tensor, scale: float, visible_Bts: Tensor | None, *, is_causal: bool = False) -> Tensor:
    """softmax(scale q k^T) v -> [B, t, N, H]. `visible_Bts` (B or 1, t or 1): which keys a query sees; None: all of them, or if
    `is_causal` query i the keys 0 .. i. Query head n reads kv head n // (N / K)."""
    if is_fused(q_BtNH.device, q_BtNH.dtype):
        q, k, v = (x.transpose(1, 2) for x in (q_BtNH, k_BsKH, v_BsKH))
        mask = None if visible_Bts is None else visible_Bts[:, None]
        grouped = q.shape[1] != k.shape[1]
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=grouped)
        return y.transpose(1, 2)
    if is_causal:
        visible_Bts = visible(torch.arange(q_BtNH.shape[1]), torch.arange(k_BsKH.shape[1]), None)[None]
    batch, length, heads, _ = q_BtNH.shape
    rows = max(1, SCORES_BYTES // (batch * heads * k_BsKH.shape[1] * q_BtNH.element_size()))
    pieces = []
    for first in range(0, length, rows):
        seen = visible_Bts
        if seen is not None and seen.shape[1] > 1:
            seen = seen[:, first : first + rows]
        pieces.append(read(softmax(q_BtNH[:, first : first + rows], k_BsKH, scale, seen), v_BsKH))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def softmax(q_BtNH: Tensor, k_BsKH: Tensor, scale: float, visible_Bts: Tensor | None) -> Tensor:
    """How much each query takes of each key [B, N, t, s], in 32 bits or more."""
    batch, length, heads, width = q_BtNH.shape
    kv_heads = k_BsKH.shape[2]
    wide = torch.promote_types(q_BtNH.dtype, torch.float32)
    # Query heads of one kv head are stacked as rows of one product.
    q = q_BtNH.to(wide).reshape(batch, length, kv_heads, -1, width).permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, width)
    scores = (q @ k_BsKH.to(wide).permute(0, 2, 3, 1)) * scale
    scores = scores.reshape(batch, heads, length, -1)
    if visible_Bts is not None:
        scores = scores.masked_fill(~visible_Bts[:, None], -torch.inf)
    return torch.softmax(scores, dim=-1)


def read(weights_BNts: Tensor, v_BsKH: Tensor) -> Tensor:
    """Values summed by weight [B, t, N, H], in the type of the values."""
    batch, heads, length, keys = weights_BNts.shape
    kv_heads, width = v_BsKH.shape[2:]
    stacked = weights_BNts.reshape(batch, kv_heads, -1, keys)
    y = (stacked @ v_BsKH.to(weights_BNts.dtype).transpose(1, 2)).reshape(batch, heads, length, width)
    return y.transpose(1, 2).to(v_BsKH.dtype)


def visible(queries: Tensor, keys: Tensor, window: Window | None) -> Tensor:
    """Whether the token at position queries[..., t] sees the one at keys[..., s]: bool [..., t, s]."""
    return sees(queries[..., :, None], keys[..., None, :], window)


def sees(p: Tensor, t: Tensor, window: Window | None) -> Tensor:
    """Whether the token at position p sees the one at t, each by itself."""
    seen = t <= p
    match window:
        case Chunks(tokens):
            return seen & (t >= p - p % tokens)
        case Sliding(tokens):
            return seen & (t > p - tokens)
    return seen


def first_seen(position: Tensor, window: Window | None) -> Tensor:
    """The lowest position that the token at `position` sees."""
    match window:
        case Chunks(tokens):
            return position - position % tokens
        case Sliding(tokens):
            return (position - tokens + 1).clamp(min=0)
    return torch.zeros_like(position)
