"""From logits on the device to tokens.

The likeliest token is found where the logits are: of each row three numbers come to the host instead of a vocabulary. Every other
way of choosing takes the row to the host and follows `sampling.chain`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from herd.backends.base import Plan
from herd.backends.torch.ops import as_numpy

if TYPE_CHECKING:
    from herd.sampling.draw import Choice, Draw


def judge(logits_RV: Tensor) -> Tensor:
    """Of each row [R, 3] in float64: 1 if all its numbers are finite, the first of its largest, and that one's log-probability."""
    rows = logits_RV.double()
    largest = rows.max(dim=-1, keepdim=True).values
    ids = torch.arange(rows.shape[-1], device=rows.device)
    first = torch.where(rows == largest, ids, rows.shape[-1]).min(dim=-1).values
    normaliser = largest[:, 0] + (rows - largest).exp().sum(dim=-1).log()
    return torch.stack([rows.isfinite().all(dim=-1).double(), first.double(), largest[:, 0] - normaliser], dim=-1)


def is_plainly_greedy(draw: Draw) -> bool:
    """Whether a draw takes the likeliest token as the model has it, and wants to know of no others."""
    params = draw.params
    return params.temperature == 0.0 and not params.logit_bias and not params.uses_history and not params.logprobs and draw.allowed is None


def choose(plan: Plan, logits_RV: Tensor, verdicts: list[list[float]]) -> tuple[tuple[Choice, ...], ...]:
    """For each span one choice for each of its draws, from the last of its rows; `verdicts` are those of `judge`."""
    choices: list[tuple[Choice, ...]] = []
    row = 0
    for span in plan.spans:
        row += span.num_outputs
        rows = range(row - len(span.draws), row)
        choices.append(tuple(_choose(logits_RV, at, verdicts[at], draw) for at, draw in zip(rows, span.draws, strict=True)))
    return tuple(choices)


def _choose(logits_RV: Tensor, row: int, verdict: list[float], draw: Draw) -> Choice:
    from herd.sampling.chain import choose as choose_from
    from herd.sampling.draw import Choice

    if is_plainly_greedy(draw):
        return Choice(int(verdict[1]), verdict[2])
    return choose_from(np.asarray(as_numpy(logits_RV[row])), draw)
