"""What the tokens of a step see of pictures, on the device: what replaces picture tokens, and what layers cross over to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from herd.backends.base import Encoded, Plan, pictures_seen
from herd.backends.torch.attention import attend


@dataclass(frozen=True, slots=True)
class Memory:
    """For one crossing layer: groups of rows of the step that see the same pictures, with those pictures' keys and values
    [I, K, H]. A row in no group sees none."""

    pieces: tuple[tuple[Tensor, Tensor, Tensor], ...]

    def attend(self, q_TNH: Tensor, scale: float) -> Tensor:
        """softmax(scale q k^T) v over what each row sees -> [T, N, H]; zeros where that is nothing."""
        y_TNH = torch.zeros_like(q_TNH)
        for rows, keys, values in self.pieces:
            y_TNH = y_TNH.index_copy(0, rows, attend(q_TNH[rows][None], keys[None], values[None], scale, None)[0])
        return y_TNH


def overlays(plan: Plan, encoded: Encoded, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Rows of the step that are picture tokens, and what replaces them [rows, D] (early fusion)."""
    rows: list[Tensor] = []
    features: list[Tensor] = []
    encoded.begin_step()
    first = 0
    for span in plan.spans:
        for placed in span.pictures:
            at = np.asarray(placed.positions, np.int64) - span.start
            inside = (at >= 0) & (at < len(span.tokens))
            if inside.any():
                rows.append(torch.from_numpy(first + at[inside]))
                features.append(encoded.get(placed.picture)[0][torch.from_numpy(np.flatnonzero(inside)).to(device)])
        first += len(span.tokens)
    return (torch.cat(rows).to(device), torch.cat(features)) if rows else None


def memories(plan: Plan, encoded: Encoded, num_layers: int, device: torch.device) -> tuple[list[Memory], Tensor]:
    """For each crossing layer what the rows of the step see, and which rows see anything. `encode` gives keys and values of
    layer 0, of layer 1, ..."""
    groups: list[tuple[Tensor, list[Sequence[Tensor]]]] = []
    seen = np.zeros(plan.num_tokens, bool)
    encoded.begin_step()
    first = 0
    for span in plan.spans:
        for begin, end, pictures in pictures_seen(span.pictures, span.start + len(span.tokens)):
            rows = np.arange(max(begin, span.start), end) - span.start + first
            if len(rows):
                groups.append((torch.from_numpy(rows).to(device), [encoded.get(picture) for picture in pictures]))
                seen[rows] = True
        first += len(span.tokens)
    made = [Memory(tuple(_piece(rows, tensors, layer) for rows, tensors in groups)) for layer in range(num_layers)]
    return made, torch.from_numpy(seen).to(device)


def _piece(rows: Tensor, tensors: list[Sequence[Tensor]], layer: int) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = ([each[2 * layer + which] for each in tensors] for which in (0, 1))
    return rows, keys[0] if len(keys) == 1 else torch.cat(keys), values[0] if len(values) == 1 else torch.cat(values)
