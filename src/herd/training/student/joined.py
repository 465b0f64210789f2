"""Frozen matrices that read the same input, with their updates, as one product.

Queries, keys and values come from one input, and so do gate and up. Their matrices stand one under the other, and beside them
stand the updates' second halves as more columns, which are zero where a row belongs to another matrix:

    y = [x | x down^T] W^T        W = [ Wq | s up_q  0       0     ]
                                      [ Wk | 0       s up_k  0     ]
                                      [ Wv | 0       0       s up_v]

One accumulator and one rounding for a matrix and its update, so that in 16 bits a small update is not lost in the steps of what it is
added to; and the thin products of rank columns, which processors are slow at, mostly disappear into the large one. The frozen
columns are decoded once and kept; those of the updates are written anew in each step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from herd.backends.torch.tensors import Tensors
from herd.models.weights import Adapted

TOGETHER = (("attention.q", "attention.k", "attention.v"), ("ffn.gate", "ffn.up"))
"""Ends of names of matrices in a layer that models give the same input. Asked for with different inputs they are still right."""


@dataclass(slots=True, eq=False)
class Joined:
    """Matrices with updates, and the one matrix that they became, [sum of out, in + sum of ranks]."""

    leaves: tuple[Adapted, ...]
    wide: Tensor

    @property
    def inputs(self) -> int:
        return self.leaves[0].shape[1]

    @property
    def outputs(self) -> list[int]:
        return [leaf.shape[0] for leaf in self.leaves]

    def places(self) -> list[tuple[slice, slice]]:
        """Where in the wide matrix each update's columns stand."""
        found, row, column = [], 0, self.inputs
        for leaf in self.leaves:
            rows, rank = leaf.shape[0], leaf.down.shape[0]
            found.append((slice(row, row + rows), slice(column, column + rank)))
            row, column = row + rows, column + rank
        return found

    def matrix(self, ups: Sequence[Tensor]) -> Tensor:
        """The wide matrix with these updates in it."""
        for leaf, (rows, columns), up in zip(self.leaves, self.places(), ups, strict=True):
            torch.mul(up, leaf.scale, out=self.wide[rows, columns])
        return self.wide


def shape_of(leaves: Sequence[Adapted]) -> tuple[int, int]:
    """Of the matrix that these become."""
    return sum(leaf.shape[0] for leaf in leaves), leaves[0].shape[1] + sum(leaf.down.shape[0] for leaf in leaves)


def join(tensors: Tensors, leaves: Sequence[Adapted]) -> Joined:
    """These matrices as one. From then on `tensors` reads each base from there."""
    wide, inputs = torch.zeros(shape_of(leaves), dtype=tensors.dtype, device=tensors.device), leaves[0].shape[1]
    row = 0
    for leaf in leaves:
        part = wide[row : row + leaf.shape[0], :inputs]
        part.copy_(tensors.get(leaf.base))
        tensors.keep(leaf.base, part)
        row += leaf.shape[0]
    return Joined(tuple(leaves), wide)


def joined(tensors: Tensors, adapted: Mapping[str, Adapted]) -> dict[int, Joined]:
    """What can be joined of a model's adapted matrices, as far as the bytes that may be kept reach; found by the leaf of each."""
    found: dict[int, Joined] = {}
    left = tensors.keep_bytes - tensors.decoded_bytes
    for ends in TOGETHER:
        for name in adapted:
            if not name.startswith("layers.") or not name.endswith(f".{ends[0]}"):
                continue
            names = [name.removesuffix(ends[0]) + end for end in ends]
            leaves = [adapted[each] for each in names if each in adapted]
            num_bytes = math.prod(shape_of(leaves)) * tensors.dtype.itemsize
            if len(leaves) == len(names) and num_bytes <= left:
                group = join(tensors, leaves)
                left -= num_bytes
                found |= {id(leaf): group for leaf in leaves}
    return found


class Products(torch.autograd.Function):
    """`apply(group, x, *downs, *ups)` -> what each matrix makes of x."""

    @staticmethod
    def forward(context: Any, group: Joined, x: Tensor, *updates: Tensor) -> tuple[Tensor, ...]:
        count = len(group.leaves)
        downs, ups = updates[:count], updates[count:]
        inputs = group.inputs
        wide = group.matrix(ups)
        longer = x.new_empty((len(x), wide.shape[1]))
        longer[:, :inputs] = x
        torch.mm(x, torch.cat(downs).T, out=longer[:, inputs:])
        context.save_for_backward(longer, *downs)
        context.group = group
        return torch.split(longer @ wide.T, group.outputs, dim=1)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        group: Joined = context.group
        longer, *downs = context.saved_tensors
        inputs, wide = group.inputs, group.wide
        dy = side_by_side(gradients)
        for_x = None
        if context.needs_input_grad[1]:
            for_longer = dy @ wide
            dlow = for_longer[:, inputs:]
            for_x = for_longer[:, :inputs].addmm_(dlow, torch.cat(downs))
        else:
            dlow = dy @ wide[:, inputs:]
        for_downs = (dlow.T @ longer[:, :inputs]).split([len(down) for down in downs])
        for_ups = [
            (dy[:, rows].T @ longer[:, columns]).mul_(leaf.scale)
            for leaf, (rows, columns) in zip(group.leaves, group.places(), strict=True)
        ]
        return None, for_x, *for_downs, *for_ups


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """[T, n] each -> [T, sum of n]. Parts that are columns of one tensor already, in order and without gaps, are not copied."""
    first, width = parts[0], 0
    for part in parts:
        is_next = part.data_ptr() == first.data_ptr() + width * first.itemsize and part.stride() == first.stride() and part.stride(1) == 1
        if not is_next or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or part.dtype != first.dtype:
            return torch.cat(list(parts), dim=1)
        width += part.shape[1]
    return first.as_strided((len(first), width), first.stride()) if width <= first.stride(0) else torch.cat(list(parts), dim=1)
