"""Low-rank updates that are learned: which matrices get one, how it begins, and the operations that run a model with them.

    y = x W^T + scale * (drop(x) down^T) up^T          scale = alpha / rank, or alpha / sqrt(rank) when stabilised

`down` begins uniform in +-1/sqrt(in) and `up` as zeros, so that learning begins at the base model. DoRA (arXiv 2402.09353) also
learns the length of each row of the sum: y is multiplied by magnitude / |W + scale up down|, whose gradient is taken for the
magnitude only, as its authors do.

Sources: arXiv 2106.09685 (LoRA), arXiv 2312.03732 (rank-stabilised).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import field

import torch
from torch import Tensor

from herd.backends.torch.ops import CommonOps
from herd.backends.torch.picture_ops import TorchPictureOps
from herd.backends.torch.products import product
from herd.dtypes import F32
from herd.errors import UsageError, did_you_mean
from herd.models.ops import Experts
from herd.models.weights import Adapted, Blocks, Dense, Kind, Matrix, TensorSpec, Vector
from herd.records import dataclass
from herd.training.keyed import generator
from herd.training.settings.lora import Lora
from herd.training.student.four_bits import rounded_tokens
from herd.training.student.fused import FusedOps
from herd.training.student.sharing import Sharing


def targeted(specs: Iterable[TensorSpec], targets: tuple[str, ...]) -> list[TensorSpec]:
    """The matrices that `targets` means. `UsageError` for a target that means none."""
    matrices = [spec for spec in specs if spec.kind is Kind.MATRIX]
    chosen: dict[str, TensorSpec] = {}
    for target in targets:
        if target == "all":
            found = [spec for spec in matrices if spec.name.startswith(("layers.", "crossing."))]
        else:
            found = [spec for spec in matrices if f".{spec.name}".endswith(f".{target}")]
        if not found:
            known = sorted({spec.name.rpartition(".")[2] for spec in matrices})
            named = ", ".join(known)
            raise UsageError(f"LoRA's target {target!r:.60} is no matrix of this model{did_you_mean(target, known)} There are: {named}.")
        chosen |= {spec.name: spec for spec in found}
    return [spec for spec in matrices if spec.name in chosen]


@dataclass(slots=True, eq=False)
class Learned:
    """One matrix with its update: the leaf that models read, and the tensors that are learned (float32)."""

    name: str
    leaf: Adapted
    down: torch.nn.Parameter
    up: torch.nn.Parameter
    magnitude: torch.nn.Parameter | None = None
    base_squares: Tensor | None = None

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        found = {f"{self.name}.down": self.down, f"{self.name}.up": self.up}
        return found if self.magnitude is None else found | {f"{self.name}.magnitude": self.magnitude}


def begin(
    spec: TensorSpec, base: Dense | Blocks, lora: Lora, seed: int, device: torch.device, dtype: torch.dtype, sharing: Sharing | None = None
) -> Learned:
    """A fresh update of one matrix, of which `base` may be this process's part. The name takes part in its random numbers, so that nothing
    depends on the order of making."""
    out, columns = spec.shape
    bound = columns**-0.5
    down = torch.empty((lora.rank, columns)).uniform_(-bound, bound, generator=generator(seed, "lora", spec.name))
    up = torch.zeros((out, lora.rank))
    if sharing is not None:
        sharing.learn_update(spec.name)
        down, up = (sharing.part(f"{spec.name}.{half}", value).clone() for half, value in (("down", down), ("up", up)))
    leaf = Adapted(base, Dense(F32, tuple(down.shape), None), Dense(F32, tuple(up.shape), None), lora.scale)
    return Learned(spec.name, leaf, torch.nn.Parameter(down.to(device, dtype)), torch.nn.Parameter(up.to(device, dtype)))


@dataclass(slots=True)
class Adapters:
    """All updates of a student, found by their leaves; whether they are on; and the key of this step's dropout. With `four_bits` the
    leaves in `rounded` are learned for four bits (`four_bits.py`), and so are the bases of all updates; with `rounds_tokens` what they are
    multiplied with is rounded too."""

    of: dict[int, Learned] = field(default_factory=dict)
    dropout: float = 0.0
    key: tuple[int | str, ...] | None = None
    are_on: bool = True
    four_bits: bool = False
    rounds_tokens: bool = False
    rounded: set[int] = field(default_factory=set)

    def beside(self, w: Matrix, x: Tensor) -> Tensor:
        """x as it is multiplied with w."""
        base = w.base if isinstance(w, Adapted) else w
        return rounded_tokens(x) if self.rounds_tokens and id(base) in self.rounded else x

    @contextmanager
    def off(self) -> Iterator[None]:
        before, self.are_on = self.are_on, False
        try:
            yield
        finally:
            self.are_on = before


class LearningOps(CommonOps):
    """Operations with updates that can be switched off, drop inputs, or learn rows' lengths. Mixed into both kinds of operations.
    `sharing`: with whom they hold the model."""

    adapters: Adapters
    sharing: Sharing | None = None

    def linear(self, x: Tensor, w: Matrix, bias: Vector | None = None) -> Tensor:
        if self.adapters.rounds_tokens:
            return self._in_four_bits(x, w, bias)
        if not isinstance(w, Adapted):
            return super().linear(x, w, bias)
        learned = self.adapters.of.get(id(w))
        if not self.adapters.are_on and learned is not None:
            return super().linear(x, w.base, bias)
        if learned is None or (learned.magnitude is None and not self._drops):
            return super().linear(x, w, bias)
        low_rank = self._dropped(x, learned) @ self._tensors.get(w.down).T @ self._tensors.get(w.up).T
        y = product(self._tensors, x, w.base, low_rank, w.scale)
        if learned.magnitude is not None:
            y = (y.to(self._wide) * self._row_factors(learned)).to(self._dtype)
        return y if bias is None else y + self._tensors.get(bias)

    def _in_four_bits(self, x: Tensor, w: Matrix, bias: Vector | None) -> Tensor:
        """Stored matrices get tokens rounded to 8 bits; updates get them as they are."""
        if not isinstance(w, Adapted):
            return super().linear(self.adapters.beside(w, x), w, bias)
        added = None
        if self.adapters.are_on:
            dropped = self._dropped(x, self.adapters.of[id(w)])
            added = dropped @ self._tensors.get(w.down).T @ self._tensors.get(w.up).T
        y = product(self._tensors, self.adapters.beside(w, x), w.base, added, w.scale)
        return y if bias is None else y + self._tensors.get(bias)

    @property
    def _drops(self) -> bool:
        return self.adapters.dropout > 0 and self.adapters.key is not None

    def _dropped(self, x: Tensor, learned: Learned) -> Tensor:
        """x with some values left out and the others enlarged to make up for them; the same ones whenever the key is the same."""
        if not self._drops or self.adapters.key is None:
            return x
        kept = 1 - self.adapters.dropout
        random = generator(*self.adapters.key, "dropout", learned.name, device=x.device)
        name, count = f"{learned.name}.down", 1
        if self.sharing is not None and self.sharing.axis(name) is not None:
            count = self.sharing.count
        mask = torch.empty((len(x), count * x.shape[1]), dtype=torch.float32, device=x.device).bernoulli_(kept, generator=random)
        mask = mask if self.sharing is None else self.sharing.part(name, mask)
        return x * (mask / kept).to(x.dtype)

    def _row_factors(self, learned: Learned) -> Tensor:
        """magnitude / |W + scale up down|, row by row."""
        assert learned.magnitude is not None
        return learned.magnitude.to(self._wide) / self.row_lengths(learned)

    @torch.no_grad()
    def row_lengths(self, learned: Learned) -> Tensor:
        """|W + scale up down| of each row, without making the sum: squares of the parts and what they have in common."""
        down, up, scale = learned.down.to(self._wide), learned.up.to(self._wide), learned.leaf.scale
        base = self._tensors.get(learned.leaf.base)
        if learned.base_squares is None:
            learned.base_squares = base.to(self._wide).square().sum(dim=1)
        common = ((base.to(self._wide) @ down.T) * up).sum(dim=1)
        added = ((up @ (down @ down.T)) * up).sum(dim=1)
        return (learned.base_squares + 2 * scale * common + scale**2 * added).clamp(min=0).sqrt()


class LearningTextOps(LearningOps, FusedOps):
    """`Ops` of a student."""

    def linear(self, x: Tensor, w: Matrix, bias: Vector | None = None) -> Tensor:
        if self.sharing is None:
            return super().linear(x, w, bias)
        return self.sharing.linear(super().linear, x, w, bias, lambda y: y if bias is None else y + self._tensors.get(bias))

    def experts(self, x_TD: Tensor, scores_TE: Tensor, w: Experts, num_chosen: int) -> Tensor:
        shared = self.sharing if self.sharing is not None and self.sharing.settings.expert > 1 else None
        if shared is None and not self.adapters.rounds_tokens:
            return super().experts(x_TD, scores_TE, w, num_chosen)
        here = range(scores_TE.shape[-1]) if shared is None else shared.experts(scores_TE.shape[-1])
        if shared is not None:
            x_TD, scores_TE = shared.copied(x_TD, scores_TE)
        chosen_TX = torch.sort(scores_TE, dim=-1, descending=True, stable=True).indices[:, :num_chosen]
        y_TD = x_TD * 0  # of all tokens, so that every process has the same way back
        for expert in sorted({each for each in chosen_TX.flatten().tolist() if each in here}):
            rows = (chosen_TX == expert).any(dim=-1).nonzero()[:, 0]
            x = self.adapters.beside(w.gate, self.sigmoid_gate(x_TD[rows], scores_TE[rows, expert, None]))
            gate, up, down = (self._tensors.expert(leaf, expert - here.start) for leaf in (w.gate, w.up, w.down))
            inner = self.adapters.beside(w.down, self.silu_gate(x @ gate.T, x @ up.T))
            y_TD = y_TD.index_add(0, rows, inner @ down.T)
        return y_TD if shared is None else shared.summed(y_TD)


class LearningPictureOps(LearningOps, TorchPictureOps):
    """`PictureOps` of a student."""
