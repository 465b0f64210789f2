"""What a model's rows say of their next tokens, without ever holding the logits of all rows: the head and the softmax in chunks.

    logits = cap(x W^T)      log p(target) = logits[target] - lse      lse = log sum exp(logits)

Logits exist for a chunk of rows at a time, [R', V]. The gradient is formed while they are there, so that the way back multiplies
nothing by the vocabulary's matrix again: with p = softmax(logits),

    d log p(target) / d x = (1[target] - p) W      d lse / d x = p W

Only where the head itself is learned *and* the weight of each row is not known beforehand (`token_logprobs` with a learned
head) are the logits made a second time on the way back. Products are in the type of `hidden_RD`, as the engine's are; softmaxes
and sums in 32 bits or more. Shapes: docs/shapes.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from herd.training.student import native_rows

CHUNK_BYTES = 48 << 20
"""Bytes of the logits of one chunk on a CPU, where they should stay near the caches; elsewhere products want many rows."""
CHUNK_BYTES_ELSEWHERE = 1 << 30
MIN_CHUNK_ROWS = 16


@dataclass(frozen=True, slots=True)
class Cap:
    """Logits are `cap` * tanh(`factor` * z / `cap`) of what the head's matrix gives (arXiv 2408.00118)."""

    factor: float
    cap: float


@dataclass(frozen=True, slots=True)
class Extras:
    """What `weighted_nll` finds on the way; no gradients flow from here.

    logprobs_R       log p(target) of each row
    lse_R            the logarithm of each row's sum of exponentials, which z-loss keeps small
    """

    logprobs_R: Tensor
    lse_R: Tensor


def token_logprobs(
    hidden_RD: Tensor, head_VD: Tensor, targets_R: Tensor, *, cap: Cap | None = None, chunk_rows: int | None = None
) -> Tensor:
    """log p(target) of each row [R], in 32 bits or more. Gradients flow to `hidden_RD` and, where it is learned, `head_VD`.
    `chunk_rows`: how many rows have logits at a time; None: as many as suit the device."""
    rows = _rows(hidden_RD, head_VD, chunk_rows)
    chosen: Tensor = _TokenLogprobs.apply(*_learning(hidden_RD, head_VD), targets_R, cap, rows)  # type: ignore[no-untyped-call]
    return chosen


def weighted_nll(
    hidden_RD: Tensor,
    head_VD: Tensor,
    targets_R: Tensor,
    weights_R: Tensor,
    z_loss: float = 0.0,
    *,
    cap: Cap | None = None,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Extras]:
    """- sum of weight * log p(target), plus `z_loss` * sum of weight * lse^2 (arXiv 2204.02311, section 5): a scalar, with
    gradients to `hidden_RD` and, where it is learned, `head_VD`."""
    rows = _rows(hidden_RD, head_VD, chunk_rows)
    found = _WeightedNll.apply(*_learning(hidden_RD, head_VD), targets_R, weights_R, z_loss, cap, rows)  # type: ignore[no-untyped-call]
    total, logprobs_R, lse_R = found
    return total, Extras(logprobs_R, lse_R)


@dataclass(slots=True)
class _Chunk:
    """Some rows with what is made of them. `values_RV` may be written to: the logarithms of the softmax, or already the slopes that
    `_negative_slope` makes of them. `slope_RV` is the derivative of the cap."""

    rows: slice
    x: Tensor
    targets: Tensor
    values_RV: Tensor
    logprobs: Tensor
    lse: Tensor
    slope_RV: Tensor | None = None
    are_slopes: bool = False


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, head: Tensor, targets: Tensor, cap: Cap | None, rows: int) -> Tensor:
        wants_hidden, wants_head = context.needs_input_grad[:2]
        slopes = torch.empty_like(hidden) if wants_hidden and not wants_head else None
        logprobs = hidden.new_empty(len(hidden), dtype=_wide(hidden))
        for chunk in _chunks(hidden, head, targets, cap, rows, wants_slopes=slopes is not None):
            logprobs[chunk.rows] = chunk.logprobs
            if slopes is not None:
                torch.mm(_negative_slope(chunk, hidden.dtype), head, out=slopes[chunk.rows]).neg_()
        context.cap, context.rows = cap, rows
        if slopes is not None:
            context.save_for_backward(slopes)
        elif wants_head:
            context.save_for_backward(hidden, head, targets)
        return logprobs

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (gradient,) = gradients
        if not context.needs_input_grad[1]:
            (slopes,) = context.saved_tensors
            return (slopes * gradient[:, None]).to(slopes.dtype), None, None, None, None
        hidden, head, targets = context.saved_tensors
        for_hidden = torch.empty_like(hidden) if context.needs_input_grad[0] else None
        for_head = torch.zeros_like(head, dtype=_wide(head))
        for chunk in _chunks(hidden, head, targets, context.cap, context.rows, wants_slopes=True):
            slope = _negative_slope(chunk, hidden.dtype)
            weights = -gradient[chunk.rows][:, None]
            _add_product(for_head, slope, chunk.x * weights.to(hidden.dtype))
            if for_hidden is not None:
                torch.mm(slope, head, out=for_hidden[chunk.rows]).mul_(weights)
        return for_hidden, for_head.to(head.dtype), None, None, None


class _WeightedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, z_loss: float, cap: Cap | None, rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_head = context.needs_input_grad[:2]
        for_hidden = torch.empty_like(hidden) if wants_hidden else None
        for_head = torch.zeros_like(head, dtype=_wide(head)) if wants_head else None
        weights = weights.to(_wide(hidden))
        logprobs, lse = (hidden.new_empty(len(hidden), dtype=_wide(hidden)) for _ in range(2))
        for chunk in _chunks(hidden, head, targets, cap, rows, wants_slopes=wants_hidden or wants_head, z_loss=z_loss):
            logprobs[chunk.rows], lse[chunk.rows] = chunk.logprobs, chunk.lse
            if not (wants_hidden or wants_head):
                continue
            slope = _negative_slope(chunk, hidden.dtype, z_loss)
            weight = weights[chunk.rows][:, None]
            if for_head is not None:
                _add_product(for_head, slope, (chunk.x * weight).to(hidden.dtype))
            if for_hidden is not None:
                torch.mm(slope, head, out=for_hidden[chunk.rows]).mul_(weight)
        context.save_for_backward(for_hidden, None if for_head is None else for_head.to(head.dtype))
        context.mark_non_differentiable(logprobs, lse)
        total = -(weights * logprobs).sum()
        return total + z_loss * (weights * lse.square()).sum() if z_loss else total, logprobs, lse

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        scale = gradients[0]
        for_hidden, for_head = (None if each is None else (each * scale).to(each.dtype) for each in context.saved_tensors)
        return for_hidden, for_head, None, None, None, None, None


def _chunks(
    hidden: Tensor, head: Tensor, targets: Tensor, cap: Cap | None, rows: int, *, wants_slopes: bool, z_loss: float = 0.0
) -> Iterator[_Chunk]:
    """The probabilities of all rows, some rows at a time, or their slopes where both are made at once."""
    for first in range(0, len(hidden), rows):
        chosen = slice(first, min(first + rows, len(hidden)))
        x, wanted = hidden[chosen], targets[chosen]
        logits = x @ head.T
        slope = None
        if cap is None and native_rows.is_native(logits):
            found, lse = native_rows.softmax(logits, wanted, z_loss, with_slopes=wants_slopes)
            yield _Chunk(chosen, x, wanted, logits, found, lse, are_slopes=True)
            continue
        if cap is not None:
            turned = torch.tanh(logits.to(_wide(x)) * (cap.factor / cap.cap))
            slope = (1 - turned.square()).mul_(cap.factor) if any(each.requires_grad for each in (hidden, head)) else None
            logits = turned.mul_(cap.cap).to(x.dtype)
        at_target = logits.gather(1, wanted[:, None])[:, 0].to(_wide(x))
        logprobs_RV = torch.log_softmax(logits, dim=-1, dtype=_wide(x))
        del logits
        found = logprobs_RV.gather(1, wanted[:, None])[:, 0]
        yield _Chunk(chosen, x, wanted, logprobs_RV, found, at_target - found, slope)


def _negative_slope(chunk: _Chunk, dtype: torch.dtype, z_loss: float = 0.0) -> Tensor:
    """((1 + 2 z_loss lse) p - 1[target]), times the derivative of the cap: [R', V] in `dtype`. Takes the chunk's memory."""
    if chunk.are_slopes:
        return chunk.values_RV
    p = chunk.values_RV.exp_()
    if z_loss:
        p.mul_((1 + 2 * z_loss * chunk.lse)[:, None])
    p.scatter_add_(1, chunk.targets[:, None], p.new_full((len(p), 1), -1.0))
    if chunk.slope_RV is not None:
        p.mul_(chunk.slope_RV)
    return p.to(dtype)


def _add_product(total_VD: Tensor, slope_RV: Tensor, x_RD: Tensor) -> None:
    """total += slope^T x, summed in the type of the total."""
    if slope_RV.dtype == total_VD.dtype:
        total_VD.addmm_(slope_RV.T, x_RD)
    else:
        total_VD += slope_RV.T @ x_RD


def _learning(hidden: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are, or without gradients where none are being kept."""
    return (hidden, head) if torch.is_grad_enabled() else (hidden.detach(), head.detach())


def _rows(hidden: Tensor, head: Tensor, chunk_rows: int | None) -> int:
    if chunk_rows is not None:
        return chunk_rows
    row_bytes = len(head) * _wide(hidden).itemsize
    return max(MIN_CHUNK_ROWS, (CHUNK_BYTES if hidden.device.type == "cpu" else CHUNK_BYTES_ELSEWHERE) // row_bytes)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
