"""The operations of a model of which this process has a part: the same ones, with a sum or a gathering where parts come together.

In a layer there is one sum after attention and one after the feed-forward or the experts; the head's logits are gathered. Whatever is
computed between those is of this process's heads and columns, or of what all have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, final

import torch
from torch import Tensor

from herd.backends.base import Plan
from herd.backends.torch.ops import TorchOps
from herd.backends.torch.tensors import Tensors
from herd.models.division import Divided, Division
from herd.models.ops import Experts
from herd.models.weights import Adapted, Matrix, Vector


class Group(Protocol):
    """The processes of one model, among which numbers are exchanged. Each waits for all others, but not for ever."""

    def total(self, x: Tensor) -> None:
        """Writes the sum over all processes over `x`, which lies in one piece."""
        ...

    def all_of(self, x: Tensor) -> list[Tensor]:
        """What each of them has in the place of `x`, in their order."""
        ...


def _unannounced(plan: Plan, is_decoding: bool) -> AbstractContextManager[None]:
    return nullcontext()


@final
class Together:
    """This process's part in a model that several hold. `announced(plan, is_decoding)` is entered around each forward: the first process
    tells the others of it there, for they do nothing of themselves."""

    def __init__(
        self, division: Division, group: Group, announced: Callable[[Plan, bool], AbstractContextManager[None]] = _unannounced
    ) -> None:
        self.division, self.announced = division, announced
        self._group = group
        self.bind(())

    def bind(self, leaves: Iterable[tuple[str, Matrix]]) -> None:
        """Remembers of which weights the products are parts, in the place of those before. Leaves are told apart by identity."""
        self._sums: set[int] = set()
        self._heads: set[int] = set()
        for name, leaf in leaves:
            stored = leaf.base if isinstance(leaf, Adapted) else leaf
            if name == "head" and self.division.axis(name) is not None:
                self._heads.add(id(stored))
            elif self.division.axis(name) == 1 and len(stored.shape) == 2:
                self._sums.add(id(stored))

    def is_summed(self, w: Matrix) -> bool:
        """Whether what this matrix makes here is a part of a sum."""
        return id(w.base if isinstance(w, Adapted) else w) in self._sums

    def is_gathered(self, w: Matrix) -> bool:
        """Whether what this matrix makes here is a part of a row, of which everybody wants the whole."""
        return id(w.base if isinstance(w, Adapted) else w) in self._heads

    def gathered(self, x: Tensor) -> Tensor:
        """The parts of rows side by side."""
        return torch.cat(self._group.all_of(x.contiguous()), dim=-1)

    def summed(self, x: Tensor) -> Tensor:
        """The sum over the processes, in 32 bits or more, rounded once."""
        whole = x.to(torch.promote_types(x.dtype, torch.float32), copy=True).contiguous()
        self._group.total(whole)
        return whole.to(x.dtype)

    @property
    def sums_experts(self) -> bool:
        """Whether what experts make here is a part."""
        return Divided.EXPERT_COLUMNS in self.division.of


class DividedOps(TorchOps):
    """`Ops` of one of several processes that hold a model together."""

    def __init__(self, tensors: Tensors, together: Together, *, is_static: bool = False) -> None:
        super().__init__(tensors, is_static=is_static)
        self._together = together

    def linear(self, x: Tensor, w: Matrix, bias: Vector | None = None) -> Tensor:
        if self._together.is_gathered(w):
            return self._together.gathered(super().linear(x, w, bias))
        if not self._together.is_summed(w):
            return super().linear(x, w, bias)
        y = self._together.summed(super().linear(x, w))
        return y if bias is None else y + self._tensors.get(bias)

    def experts(self, x_TD: Tensor, scores_TE: Tensor, w: Experts, num_chosen: int) -> Tensor:
        y_TD = super().experts(x_TD, scores_TE, w, num_chosen)
        return self._together.summed(y_TD) if self._together.sums_experts else y_TD
