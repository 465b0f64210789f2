"""Attention over packed documents without a cache: what training runs a model with.

Documents lie one after another in one row of tokens, each from position 0; a token sees its own document only. Gradients flow to
queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.backends.torch.attention import attend, read, softmax, visible
from herd.backends.torch.ops import TorchOps
from herd.backends.torch.pages import Opened
from herd.models.architecture import Config, architecture_of
from herd.models.ops import Step, Window


@dataclass(frozen=True, slots=True)
class Documents:
    """Takes the place of a layer's cache: `lengths` of the documents, in order."""

    lengths: tuple[int, ...]

    def attend(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float, window: Window | None, opened: Opened | None = None
    ) -> Tensor:
        """Causal attention inside each document -> [T, N, H]."""
        qkv = zip(*(torch.split(x, list(self.lengths)) for x in (q_TNH, k_TKH, v_TKH)), strict=True)
        return torch.cat([_document(q[None], k[None], v[None], scale, window, opened)[0] for q, k, v in qkv])


def packed_step(cfg: Config, ops: TorchOps, documents: Sequence[Sequence[int]], outputs: Sequence[int] | None = None) -> Step:
    """A step over whole documents. `outputs`: the rows of the packed tokens whose logits are wanted; None: all."""
    device = ops.device
    cache = Documents(tuple(len(document) for document in documents))
    return Step(
        ops=ops,
        tokens_T=torch.tensor([token for document in documents for token in document], device=device),
        positions_T=torch.cat([torch.arange(length, device=device) for length in cache.lengths]),
        outputs_R=None if outputs is None else torch.tensor(outputs, dtype=torch.int64, device=device),
        cache=[cache] * len(architecture_of(cfg).caches(cfg)),
    )


def _document(q: Tensor, k: Tensor, v: Tensor, scale: float, window: Window | None, opened: Opened | None) -> Tensor:
    length = q.shape[1]
    is_whole = window is None or window.tokens >= length
    if is_whole and opened is None:
        return attend(q, k, v, scale, None, is_causal=True)
    positions = torch.arange(length, device=q.device)
    seen = visible(positions, positions, window)[None]
    if opened is None:
        return attend(q, k, v, scale, seen)
    return read(opened(softmax(q, k, scale, seen)[0])[None], v)
