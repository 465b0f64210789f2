"""One model that learns, held by several processes: each has some heads, some columns of the feed-forwards, and some experts.

What is divided, and how, is said once for all: `models/division.py`. Here embedding, norms, router and head are whole in each process. In a
block of attention or a feed-forward there is one sum on the way there, of what comes out, and one on the way back, of the gradient of what
went in. Of a low-rank update the half that meets the divided side of its matrix is divided with it; the other half is whole, and what each
process finds of its gradient is a part of a sum, made once a step (`partial`). Sums are plain operations between processes that autograd is
told of here, not DTensor's: docs/decisions/0024-parts-of-a-model.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from herd.checkpoints.divided import part_of
from herd.errors import UsageError
from herd.models.architecture import Config, seeing
from herd.models.division import Divided, Division
from herd.models.llama import LlamaConfig
from herd.models.llama4 import Llama4Config
from herd.models.weights import Leaf, Matrix, Vector
from herd.training.settings.parallel import ParallelSettings

SETTINGS: Mapping[Divided, str] = {Divided.LAYERS: "parallel.tensor", Divided.EXPERTS: "parallel.expert"}


@dataclass(frozen=True, eq=False)
class Sharing:
    """This process's part, `index` of `count`. total: the sum of a tensor over the processes of the model, written over it. gathered: what
    each of them has, in their order. axes: which side of a leaf is divided, by the leaf's identity. factors: which side
    of the halves of updates is, by their names. partial: those whose gradients are to be summed over the processes of the model."""

    settings: ParallelSettings
    index: int
    count: int
    total: Callable[[Tensor], Tensor]
    gathered: Callable[[Tensor], list[Tensor]]
    axes: dict[int, int] = field(default_factory=dict)
    factors: dict[str, int | None] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)

    @cached_property
    def division(self) -> Division:
        """What the settings divide."""
        asked = {Divided.LAYERS: self.settings.tensor, Divided.EXPERTS: self.settings.expert}
        return Division(self.index, self.count, frozenset(kind for kind, count in asked.items() if count > 1))

    def axis(self, name: str) -> int | None:
        """Which side of the weight of this name, or of a moment of it ("NAME.first"), is divided; None: it is whole."""
        known = next((each for each in (name, name.rpartition(".")[0]) if each in self.factors), None)
        return self.division.axis(name) if known is None else self.factors[known]

    def learn_update(self, name: str) -> None:
        """The matrix of this name gets a low-rank update."""
        axes = dict(zip((f"{name}.down", f"{name}.up"), self.division.update_axes(name), strict=True))
        self.factors.update(axes)
        if any(axis is not None for axis in axes.values()):
            self.partial.update(half for half, axis in axes.items() if axis is None)

    def check(self, cfg: Config) -> None:
        """`UsageError` by name for what cannot be divided so."""
        if not isinstance(cfg, LlamaConfig | Llama4Config) or seeing(cfg) is not None:
            raise UsageError("parallel: one model is divided among processes for Llamas of text, with experts or without; this is another.")
        for kind, number, what in self.division.indivisible(cfg):
            text = f"{SETTINGS[kind]} is {self.count}; the model's {number} {what} do not divide by it."
            raise UsageError(text, param=SETTINGS[kind])

    def config(self, cfg: Any) -> Any:
        """The architecture as the functions of a model see it here: with this process's heads."""
        return self.division.config(cfg)

    def whole_config(self, cfg: Any) -> Any:
        """The other way round."""
        return self.division.whole_config(cfg)

    def leaf(self, whole: Leaf) -> Leaf:
        """This process's part of each weight."""

        def part(name: str) -> Matrix:
            return part_of(name, whole(name), self.division)

        return part

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a weight, or of a moment of it."""
        axis = self.axis(name)
        return whole if axis is None or whole.dim() == 0 else whole.chunk(self.count, dim=axis)[self.index]

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The weight, or the moment of it, that this is this process's part of. Every process of the model has to ask."""
        axis = self.axis(name)
        return part if axis is None or part.dim() == 0 else torch.cat(self.gathered(part.detach().contiguous()), dim=axis)

    def over(self, leaves: Mapping[str, Matrix]) -> Sharing:
        """The same for one student, whose leaves these are: `linear` knows by them what is divided. They live as long as it."""
        found = {id(leaf): self.axis(name) for name, leaf in leaves.items()}
        return replace(self, axes={leaf: axis for leaf, axis in found.items() if axis is not None})

    def linear(self, make: Callable[..., Tensor], x: Tensor, w: Matrix, bias: Vector | None, add: Callable[[Tensor], Tensor]) -> Tensor:
        """x W^T, by `make`, of a matrix that may be divided. `add` adds the bias to a finished sum."""
        axis = self.axes.get(id(w))
        if axis == 0:
            return make(self.copied(x)[0], w, bias)
        if axis == 1:
            y = self.summed(make(x, w))
            return y if bias is None else add(y)
        return make(x, w, bias)

    def copied(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The same tensors; their gradients are summed over the model's processes."""
        found: tuple[Tensor, ...] = _Copied.apply(self, *tensors)  # type: ignore[no-untyped-call]
        return found

    def summed(self, x: Tensor) -> Tensor:
        """The sum over the model's processes; each has the whole gradient already."""
        found: Tensor = _Summed.apply(self, x)  # type: ignore[no-untyped-call]
        return found

    def all_of(self, x: Tensor) -> Tensor:
        """The sum, in 32 bits or more, as a tensor of its own."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.total(x.detach().to(wide, copy=True).contiguous()).to(x.dtype)

    def experts(self, number: int) -> range:
        """Which of a layer's experts this process runs."""
        if self.settings.expert == 1:
            return range(number)
        each = number // self.count
        return range(self.index * each, (self.index + 1) * each)


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, sharing: Sharing, *tensors: Tensor) -> tuple[Tensor, ...]:
        context.sharing = sharing
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Any, ...]:
        return None, *(context.sharing.all_of(each) for each in gradients)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, sharing: Sharing, x: Tensor) -> Tensor:
        return sharing.all_of(x)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[None, Tensor]:
        return None, gradients[0]
