"""Attention over packed documents by torch's FlexAttention: one kernel over all of them, with a mask that knows where they begin.

For GPUs: on a CPU it has no way back (torch 2.13) and `attention.py` is faster. Importing it takes seconds, so only who needs it does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from herd.backends.torch.attention import sees
from herd.models.ops import Window

BLOCK = 128


def block_mask(lengths: tuple[int, ...], window: Window | None, device: torch.device) -> BlockMask:
    """What FlexAttention must know: which token sees which, and which blocks of them are empty."""
    counts = torch.tensor(lengths, device=device)
    document_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts)
    position_T = torch.arange(len(document_T), device=device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)

    def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_T[query] == document_T[key]) & sees(position_T[query], position_T[key], window)

    total = sum(lengths)
    return create_block_mask(is_seen, None, None, total, total, device=str(device), BLOCK_SIZE=BLOCK)


def flexible(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float, mask: BlockMask, function: Any = flex_attention) -> Tensor:
    """Attention by `flex_attention`, compiled or not, over all documents at once -> [T, N, H]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
    grouped = q.shape[1] != k.shape[1]
    y: Tensor = function(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)
    return y[0].transpose(0, 1)


@lru_cache(maxsize=1)
def compiled() -> Any:
    """FlexAttention is only worth having compiled. Lengths change from step to step, so the kernel must not be made for one."""
    return torch.compile(flex_attention, dynamic=True)
