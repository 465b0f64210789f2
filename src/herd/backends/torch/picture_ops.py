"""`PictureOps` in torch: encoders of pictures, and classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from herd.backends.torch.attention import attend
from herd.backends.torch.ops import CommonOps
from herd.models.weights import Matrix, Vector


class TorchPictureOps(CommonOps):
    """What `models.ops.PictureOps` says, in the types of `CommonOps`."""

    def patches(self, pixels: Tensor, size: int, frames: int = 1) -> Tensor:
        if len(pixels) == 1:
            pixels = pixels.expand(frames, -1, -1, -1)
        tiles, channels, height, width = pixels.shape
        cut = pixels.reshape(tiles // frames, frames, channels, height // size, size, width // size, size)
        return cut.permute(0, 3, 5, 1, 2, 4, 6).reshape(-1, frames * channels * size * size)

    def mix(self, table: Matrix, rows: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> Tensor:
        index = torch.tensor(rows, dtype=torch.int64, device=self._tensors.device)
        share = torch.tensor(shares, dtype=self._wide, device=self._tensors.device)
        picked = self.embed(index.flatten(), table).reshape(*index.shape, -1)
        return (picked.to(self._wide) * share[..., None]).sum(dim=1).to(self._dtype)

    def layer_norm(self, x_ID: Tensor, weight: Vector, bias: Vector, eps: float) -> Tensor:
        values = self._tensors.vector(weight), self._tensors.vector(bias)
        return functional.layer_norm(x_ID.to(self._wide), x_ID.shape[-1:], *values, eps).to(self._dtype)

    def gelu(self, x: Tensor) -> Tensor:
        return functional.gelu(x)

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def angles(self, angles: Sequence[Sequence[float]]) -> Tensor:
        values = torch.tensor(angles, dtype=torch.float64, device=self._tensors.device)
        return torch.stack([values.cos(), values.sin()]).to(self._wide)

    def attend(
        self, q_INH: Tensor, k_IKH: Tensor, v_IKH: Tensor, scale: float, lengths: Sequence[int], padding: Sequence[bool] | None = None
    ) -> Tensor:
        assert sum(lengths) == len(q_INH), "groups cover all rows"
        if padding is None and len(set(lengths)) == 1:
            q, k, v = (x.reshape(len(lengths), -1, *x.shape[1:]) for x in (q_INH, k_IKH, v_IKH))
            return attend(q, k, v, scale, None).flatten(0, 1)
        pieces = []
        first = 0
        for length in lengths:
            q, k, v = (x[None, first : first + length] for x in (q_INH, k_IKH, v_IKH))
            pads = [] if padding is None else list(padding[first : first + length])
            pieces.append(attend(q, k, v, 0.0 if pads and all(pads) else scale, _apart(pads, q_INH.device))[0])
            first += length
        return torch.cat(pieces)

    def relative_attend(
        self, q_INH: Tensor, k_INH: Tensor, v_INH: Tensor, near_kNH: Tensor, near_qNH: Tensor, buckets: Sequence[Sequence[int]]
    ) -> Tensor:
        index = torch.from_numpy(np.asarray(buckets, np.int64)).to(q_INH.device)
        q, k, v, near_k, near_q = (x.transpose(0, 1).to(self._wide) for x in (q_INH, k_INH, v_INH, near_kNH, near_qNH))
        scores = q @ k.mT
        scores = scores + (q @ near_k.mT).gather(-1, index.expand(scores.shape))
        scores = scores + (k @ near_q.mT).gather(-1, index.T.expand(scores.shape)).mT
        weights = torch.softmax(scores / math.sqrt(3 * q_INH.shape[-1]), dim=-1)
        return (weights @ v).transpose(0, 1).to(self._dtype)

    def gated_add(self, x: Tensor, y: Tensor, gate: Vector) -> Tensor:
        return (x.to(self._wide) + torch.tanh(self._tensors.vector(gate)) * y.to(self._wide)).to(self._dtype)

    def rows(self, x: Tensor, index: Sequence[int]) -> Tensor:
        return x[torch.tensor(index, dtype=torch.int64, device=x.device)]

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), dim=-1)

    def fold(self, x: Tensor, count: int, *, by_column: bool = False) -> Tensor:
        grouped = x.reshape(-1, count, x.shape[-1])
        return (grouped.transpose(1, 2) if by_column else grouped).flatten(1)


def _apart(pads: list[bool], device: torch.device) -> Tensor | None:
    """Padding rows do not see padding rows: [1, t, s]. None if that hides nothing, or everything (then all count the same)."""
    if not any(pads) or all(pads):
        return None
    padded = torch.tensor(pads, device=device)
    return ~(padded[:, None] & padded)[None]
