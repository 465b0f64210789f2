"""The operations of `models/ops.py` in torch, for inference and under autograd alike: no argument is written to.

In 16 bits a value is rounded where an operation ends, not inside: norms, rotations, gates and softmaxes compute in 32 bits, products
sum in 32 bits, and the low-rank product of an adapter is added before the one rounding. In 32 and 64 bits everything is of that type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from herd.backends.base import Watch
from herd.backends.torch.constants import constant
from herd.backends.torch.pages import Opened
from herd.backends.torch.pictures import Memory
from herd.backends.torch.products import product
from herd.backends.torch.tensors import Tensors
from herd.errors import UsageError
from herd.models.ops import NO_ALIASES, Experts, Window
from herd.models.weights import Adapted, Matrix, Vector


class Attending(Protocol):
    """What a model finds in `step.cache`: pages (`pages.LayerCache`) or documents without a cache (`documents.Documents`)."""

    def attend(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, scale: float, window: Window | None, opened: Opened | None = None
    ) -> Tensor: ...


class CommonOps:
    """What language models and encoders have in common."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._dtype, self._wide = tensors.dtype, tensors.wide

    @property
    def device(self) -> torch.device:
        return self._tensors.device

    def embed(self, tokens: Sequence[int] | Tensor, table: Matrix, *, aliases: Mapping[int, int] = NO_ALIASES) -> Tensor:
        index = tokens if isinstance(tokens, Tensor) else torch.tensor(tokens, device=self._tensors.device)
        for token, row in aliases.items():
            index = torch.where(index == token, row, index)
        if isinstance(table, Adapted):
            up, down = self._tensors.rows(table.up, index), self._tensors.vector(table.down)
            return (self._tensors.rows(table.base, index) + table.scale * (up @ down)).to(self._dtype)
        return self._tensors.rows(table, index).to(self._dtype)

    def linear(self, x: Tensor, w: Matrix, bias: Vector | None = None) -> Tensor:
        added = None if bias is None else self._tensors.get(bias)
        if not isinstance(w, Adapted):
            return product(self._tensors, x, w, added)
        low_rank = x @ self._tensors.get(w.down).T @ self._tensors.get(w.up).T
        y = product(self._tensors, x, w.base, low_rank, w.scale)
        return y if added is None else y + added

    def rms_norm(self, x: Tensor, weight: Vector | None, eps: float, *, centred: bool = False) -> Tensor:
        wide = x.to(self._wide)
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        if weight is not None:
            values = self._tensors.vector(weight)
            normed = normed * (1 + values if centred else values)
        return normed.to(self._dtype)

    def heads(self, x: Tensor, num_heads: int) -> Tensor:
        return x.reshape(*x.shape[:-1], num_heads, -1)

    def merge_heads(self, x_TNH: Tensor) -> Tensor:
        return x_TNH.flatten(-2)

    def rotate(self, x_TNH: Tensor, rotary_TH: Tensor) -> Tensor:
        cos, sin = rotary_TH[0][:, None, :], rotary_TH[1][:, None, :]
        width = 2 * cos.shape[-1]
        pairs = x_TNH[..., :width].to(self._wide).reshape(*x_TNH.shape[:-1], -1, 2)
        even, odd = pairs[..., 0], pairs[..., 1]
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(self._dtype)
        return turned if width == x_TNH.shape[-1] else torch.cat([turned, x_TNH[..., width:]], dim=-1)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class TorchOps(CommonOps):
    """`Ops` in torch. `watch` is what the running step's plan wants to read or replace, `values` what was read; `names`, if it is
    a list, collects the names of all values. `is_static`: nothing may depend on a value that only the device knows."""

    watch: Watch | None = None
    names: list[str] | None = None

    def __init__(self, tensors: Tensors, *, is_static: bool = False) -> None:
        super().__init__(tensors)
        self._is_static = is_static

    def begin(self, watch: Watch | None) -> dict[str, Any]:
        """Before a step; gives the dictionary that its values will be in."""
        self.watch, self.values = watch, dict[str, Any]()
        return self.values

    def rotary(self, positions_T: Tensor, frequencies: Sequence[float], magnitude: float) -> Tensor:
        """cos and sin [2, T, width / 2]. Angles are float64 in any case: position times frequency loses digits quickly."""
        angles = positions_T[:, None] * constant(tuple(frequencies), torch.float64, positions_T.device)
        return (torch.stack([angles.cos(), angles.sin()]) * magnitude).to(self._wide)

    def temper(self, x_TNH: Tensor, positions_T: Tensor, floor: float, scale: float) -> Tensor:
        factors_T = 1 + scale * torch.log(torch.floor((positions_T + 1).double() / floor) + 1)
        return (x_TNH.to(self._wide) * factors_T[:, None, None].to(self._wide)).to(self._dtype)

    def attention(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: Attending, scale: float, *, window: Window | None = None, name: str = ""
    ) -> Tensor:
        if self.names is not None and name:
            self.names.append(name)
        opened = None
        if self.watch is not None and name in self.watch.read | self.watch.patch.keys():
            opened = self._open(name, self.watch)
        return cache.attend(q_TNH, k_TKH, v_TKH, scale, window, opened)

    def cross_attention(self, q_TNH: Tensor, memory: Memory, scale: float) -> Tensor:
        return memory.attend(q_TNH, scale)

    def gated_add(self, x: Tensor, y: Tensor, gate: Vector, seen: Tensor | None = None) -> Tensor:
        added = torch.tanh(self._tensors.vector(gate)) * y.to(self._wide)
        if seen is not None:
            added = torch.where(seen[:, None], added, torch.zeros_like(added))
        return (x.to(self._wide) + added).to(self._dtype)

    def silu_gate(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        return (functional.silu(gate_TF.to(self._wide)) * up_TF.to(self._wide)).to(self._dtype)

    def sigmoid_gate(self, x: Tensor, gate: Tensor) -> Tensor:
        return (x.to(self._wide) * torch.sigmoid(gate.to(self._wide))).to(self._dtype)

    def experts(self, x_TD: Tensor, scores_TE: Tensor, w: Experts, num_chosen: int) -> Tensor:
        if any(isinstance(leaf, Adapted) for leaf in (w.gate, w.up, w.down)):
            raise UsageError("Adapters over the stacked matrices of experts are not supported.")
        chosen_TX = torch.sort(scores_TE, dim=-1, descending=True, stable=True).indices[:, :num_chosen]
        if self._is_static:
            return self._gathered_experts(x_TD, scores_TE, w, chosen_TX)
        y_TD = torch.zeros_like(x_TD)
        for expert in sorted(set(chosen_TX.flatten().tolist())):
            rows = (chosen_TX == expert).any(dim=-1).nonzero()[:, 0]
            x = self.sigmoid_gate(x_TD[rows], scores_TE[rows, expert, None])
            gate, up, down = (self._tensors.expert(leaf, expert) for leaf in (w.gate, w.up, w.down))
            y_TD = y_TD.index_add(0, rows, self.silu_gate(x @ gate.T, x @ up.T) @ down.T)
        return y_TD

    def soft_cap(self, x: Tensor, factor: float, cap: float) -> Tensor:
        return (cap * torch.tanh(x.to(self._wide) * factor / cap)).to(self._dtype)

    def overlay(self, x_TD: Tensor, pictures: tuple[Tensor, Tensor] | None) -> Tensor:
        return x_TD if pictures is None else x_TD.index_copy(0, pictures[0], pictures[1])

    def select(self, x_TD: Tensor, rows_R: Tensor | None) -> Tensor:
        """`rows_R` None: all rows, in order."""
        return x_TD if rows_R is None else x_TD.index_select(0, rows_R)

    def tap(self, name: str, x: Tensor) -> Tensor:
        if self.names is not None:
            self.names.append(name)
        if self.watch is None:
            return x
        if name in self.watch.patch:
            x = self._patched(name, self.watch, x)
        if name in self.watch.read:
            self.values[name] = as_numpy(x)
        return x

    def _gathered_experts(self, x_TD: Tensor, scores_TE: Tensor, w: Experts, chosen_TX: Tensor) -> Tensor:
        """The same with each token's matrices gathered, for the few tokens of answers: nobody asks which experts they are."""
        tokens, num_chosen = chosen_TX.shape
        x_TXD = self.sigmoid_gate(x_TD[:, None].expand(-1, num_chosen, -1), scores_TE.gather(1, chosen_TX)[..., None])
        x = x_TXD.flatten(0, 1)[:, :, None]
        gate, up, down = (self._tensors.expert(leaf, chosen_TX.flatten()) for leaf in (w.gate, w.up, w.down))
        y = (down @ self.silu_gate(gate @ x, up @ x))[:, :, 0]
        return y.reshape(tokens, num_chosen, -1).to(self._wide).sum(dim=1).to(self._dtype)

    def _open(self, name: str, watch: Watch) -> Opened:
        """Reads or replaces the softmax of each sequence as it is made."""
        kept = self.values[name] = []

        def opened(weights_NtS: Tensor) -> Tensor:
            if name in watch.patch:
                weights_NtS = self._patched(name, watch, weights_NtS)
            kept.append(as_numpy(weights_NtS))
            return weights_NtS

        return opened

    def _patched(self, name: str, watch: Watch, value: Tensor) -> Tensor:
        """What a researcher's function makes of a value. `UsageError` for another shape."""
        made = np.asarray(watch.patch[name](as_numpy(value)), np.float32)
        if made.shape != tuple(value.shape):
            raise UsageError(f"The patch of {name} gave shape {list(made.shape)}; the value has {list(value.shape)}.")
        return torch.from_numpy(np.array(made)).to(value.device, value.dtype)


def as_numpy(x: Tensor) -> NDArray[np.float32]:
    """The values on the host; a copy of their own."""
    return np.array(x.detach().float().cpu().numpy())
