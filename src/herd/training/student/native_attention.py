"""Attention inside packed documents by the native kernels, forwards and backwards (`csrc/learning/attention.h`): on a processor.

Kept of the forward are its arguments and one number for each query and head. In bfloat16, where the processor multiplies pairs of it,
the softmax and its slopes are rounded to bfloat16 before they are multiplied; sums are in 32 bits everywhere. Nothing depends on how many
threads there are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from herd import _core
from herd.models.ops import Chunks, Sliding, Window
from herd.training.student.native_rows import fastest_isa, is_native

MAX_HEAD_WIDTH = 1024


def attends_natively(q_TNH: Tensor) -> bool:
    """Whether the kernels take such queries."""
    width = q_TNH.shape[-1]
    return is_native(q_TNH) and width % 16 == 0 and width <= MAX_HEAD_WIDTH


def native_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, lengths: tuple[int, ...], scale: float, window: Window | None) -> Tensor:
    """Causal attention inside each document -> [T, N, H]."""
    y_TNH: Tensor = _Native.apply(q_TNH, k_TKH, v_TKH, lengths, scale, window)  # type: ignore[no-untyped-call]
    return y_TNH


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, lengths: tuple[int, ...], scale: float, window: Window | None
    ) -> Tensor:
        q, k, v = (_side_by_side(x) for x in (q_TNH, k_TKH, v_TKH))
        attention = _core.DocumentAttention(fastest_isa(), torch.get_num_threads(), lengths, *_named(window), scale)
        y_TNH = torch.empty(q.shape, dtype=q.dtype)
        tops_NT = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32)
        attention.forward(q, k, v, y_TNH, tops_NT, _memory(attention.workspace_bytes(q, k, False)))
        context.save_for_backward(q, k, v, tops_NT)
        context.attention = attention
        return y_TNH

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, tops_NT = context.saved_tensors
        attention = context.attention
        for_q, for_k, for_v = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        memory = _memory(attention.workspace_bytes(q, k, True))
        attention.backward(q, k, v, tops_NT, _side_by_side(gradients[0]), for_q, for_k, for_v, memory)
        return for_q, for_k, for_v, None, None, None


def _side_by_side(x_THH: Tensor) -> Tensor:
    """Without gradients, and with the heads of a token one after another in memory, as the kernels read them."""
    x = x_THH.detach()
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _memory(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def _named(window: Window | None) -> tuple[str, int]:
    match window:
        case None:
            return "past", 0
        case Chunks(tokens):
            return "chunks", tokens
        case Sliding(tokens):
            return "sliding", tokens
