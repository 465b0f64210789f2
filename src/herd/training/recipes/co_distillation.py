"""Learning from a larger model beside the text, as Behemoth taught Maverick while it was pretrained.

    loss of a token = (1 - s) hard + s soft        hard = - log p(token)        soft = T^2 KL(teacher_T || student_T)

How s moves was not published by Meta. Here it goes on half a cosine from one share to another over the run, and (`by_gap`) is multiplied
for each token by how far the teacher is ahead on it: where it is not, the text is the better teacher. Logits of both models exist for a
chunk of rows at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from herd.backends.torch.documents import Documents
from herd.backends.torch.ops import TorchOps
from herd.backends.torch.tensors import Tensors
from herd.errors import UsageError
from herd.models.architecture import Config, architecture_of
from herd.models.ops import Step
from herd.models.weights import Leaf
from herd.training.settings.pretrain import TeacherSettings
from herd.training.student.batches import Batch

CHUNK_ROWS = 256


class Teacher:
    """A model that does not learn."""

    def __init__(self, cfg: Config, leaf: Leaf, device: torch.device, dtype: torch.dtype) -> None:
        self.cfg = cfg
        self._module = architecture_of(cfg)
        self._tensors = Tensors(device, dtype)
        self._ops = TorchOps(self._tensors)
        self._weights = self._module.weights(cfg, leaf)

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Tensor:
        """[R, D] after the last norm. `UsageError` for pictures."""
        if any(batch.pictures):
            raise UsageError("A teacher reads text only; leave the pictures out of the mix, or the teacher.")
        cache = [Documents(batch.lengths)] * len(self._module.caches(self.cfg))
        step = Step(self._ops, batch.tokens_T, batch.positions_T, batch.rows_R, cache)
        found: Tensor = self._module.hidden(self._weights, self.cfg, step)
        return found

    @torch.no_grad()
    def logits(self, hidden_RD: Tensor) -> Tensor:
        found: Tensor = self._module.logits(hidden_RD, self._weights, self.cfg, Step(self._ops, None, None, None, ()))
        return found


class Blend(NamedTuple):
    """Sums over rows: the loss (with gradients), and of its parts hard, soft, s and the squared logarithm of the softmax's sum."""

    loss: Tensor
    hard: Tensor
    soft: Tensor
    share: Tensor
    z: Tensor


def share_at(settings: TeacherSettings, step: int, steps: int) -> float:
    """s of a step, before the gap."""
    left = (1 + math.cos(math.pi * min(step / max(1, steps - 1), 1.0))) / 2
    return settings.last_share + (settings.share - settings.last_share) * left


def blended(
    hidden_RD: Tensor,
    head_VD: Tensor,
    teacher: Teacher,
    seen_RD: Tensor,
    batch: Batch,
    share: float,
    settings: TeacherSettings,
    z_loss: float,
) -> Blend:
    """The loss of all rows; `seen_RD` is what the teacher makes of the same batch."""

    def part(hidden: Tensor, head: Tensor, seen: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return _part(hidden, head, teacher.logits(seen), targets, weights, share, settings, z_loss)

    sums: Tensor | None = None
    for first in range(0, len(batch.targets_R), CHUNK_ROWS):
        rows = slice(first, first + CHUNK_ROWS)
        arguments = hidden_RD[rows], head_VD, seen_RD[rows], batch.targets_R[rows], batch.weights_R[rows]
        piece: Tensor = checkpoint(part, *arguments, use_reentrant=False)
        sums = piece if sums is None else sums + piece
    assert sums is not None, "a batch has rows"
    return Blend(sums[0], *sums[1:].detach())


def _part(
    hidden: Tensor, head: Tensor, taught: Tensor, targets: Tensor, weights: Tensor, share: float, settings: TeacherSettings, z_loss: float
) -> Tensor:
    """[5]: loss, hard, soft, share and z of some rows, weighted and summed."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits, taught = (hidden @ head.T).to(wide), taught.to(wide)
    lse = logits.logsumexp(dim=-1)
    hard = lse - logits.gather(1, targets[:, None])[:, 0]
    warm = settings.temperature
    log_p, log_q = torch.log_softmax(logits / warm, dim=-1), torch.log_softmax(taught / warm, dim=-1)
    soft = warm**2 * (log_q.exp() * (log_q - log_p)).sum(dim=-1)
    shares = torch.full_like(hard, share)
    if settings.by_gap:
        of_teacher = -torch.log_softmax(taught, dim=-1).gather(1, targets[:, None])[:, 0]
        behind = hard.detach()
        shares = shares * ((behind - of_teacher) / behind.clamp(min=1e-6)).clamp(0, 1)
    loss = (1 - shares) * hard + shares * soft + z_loss * lse.square()
    return torch.stack([(weights * each).sum() for each in (loss, hard, soft, shares, lse.square())])
