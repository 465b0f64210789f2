"""Experts that are equally busy, and the operation that training runs them by.

    biases   each expert's bias is added to its score in the *choice* only, and moves a little after every step: up if the expert had
             fewer tokens than the mean, else down. Nothing is added to the loss (arXiv 2408.15664)
    a loss   E sum over experts of (share of the tokens that went there) (mean probability of going there): arXiv 2101.03961. The share
             of tokens counts as given, so its gradient is written down here and goes to the scores directly

Files of a Llama 4 have no place for such biases, and they cannot be folded into the router: it reads what a norm made, in which no
direction is constant. So they are a scaffold. Over the last steps of a run they shrink in equal parts to nothing, while the loss keeps
the loads level, and the model that is saved is the very one that the last steps trained. Held-out figures never use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from herd.backends.torch.tensors import Tensors
from herd.errors import FileProblem
from herd.models.llama4 import Llama4Weights, MixtureWeights
from herd.models.ops import Experts
from herd.training.settings.pretrain import BalancingSettings
from herd.training.student.lora import Adapters, LearningTextOps
from herd.training.student.sharing import Sharing


class Balance:
    """The biases of all layers with experts, and how many tokens each expert had since the step began: those of all processes."""

    def __init__(
        self,
        settings: BalancingSettings,
        weights: object,
        num_experts: int,
        steps: int,
        device: torch.device,
        summed: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self._summed = summed
        self._counts_here = 1.0
        self._settings = settings
        self._steps = steps
        self._layer_of = _layers_of(weights)
        self.biases = {name: torch.zeros(num_experts, device=device) for name in self._layer_of.values()}
        self.counts = {name: torch.zeros(num_experts, device=device) for name in self._layer_of.values()}
        self.is_learning = False
        self.is_counting = False
        self._strength = 1.0
        self.loss_weight = 0.0

    def begin(self, step: int) -> None:
        """Before what belongs to optimiser step `step`."""
        left = self._left(step)
        self._strength = left
        is_releasing = self._settings.bias > 0 and left < 1
        self.loss_weight = max(self._settings.loss, self._settings.release_loss if is_releasing else 0.0)
        for counts in self.counts.values():
            counts.zero_()

    def of_part(self, weight: float, counts: float, part_tokens: int, tokens: int) -> None:
        """Before a part of a step of `tokens` tokens. counts: 0 if another process computes
        what this one does, else 1."""
        self.loss_weight = weight * part_tokens / tokens
        self._counts_here = counts

    def of_all(self, counts_E: Tensor) -> Tensor:
        """How many tokens of this part went to each expert in all processes, which come by here together."""
        return self._summed(counts_E * int(self._counts_here)) if self.is_learning else counts_E

    @property
    def weight_here(self) -> float:
        """The loss's weight for tokens that this process computes."""
        return self.loss_weight * self._counts_here

    def end(self, step: int) -> dict[str, float]:
        """After it: biases move, as long as they are not being released. Figures of the loads, the mean being 1."""
        if not self.counts:
            return {}
        if self._settings.bias and self._left(step) == 1.0:
            for name, counts in self.counts.items():
                self.biases[name] += self._settings.bias * torch.sign(counts.mean() - counts)
        loads = torch.stack([counts / counts.mean().clamp(min=1) for counts in self.counts.values()])
        return {"expert_load_max": float(loads.max()), "expert_load_min": float(loads.min())}

    def bias_of(self, experts: Experts) -> Tensor | None:
        """What is added to the scores of a layer's experts when they are chosen."""
        if not (self.is_learning and self._settings.bias and self._strength):
            return None
        return self.biases[self._layer_of[id(experts.gate)]] * self._strength

    def count(self, experts: Experts, counts_E: Tensor) -> None:
        """So many tokens went to each expert. Layers that are computed again on the way back count once."""
        if self.is_counting:
            self.counts[self._layer_of[id(experts.gate)]] += counts_E

    def state(self) -> dict[str, Tensor]:
        return {f"{name}.bias": bias for name, bias in self.biases.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a `state()`. `FileProblem` for that of other layers."""
        if set(tensors) != set(self.state()):
            raise FileProblem("The run's state has biases of other layers' experts than the model has. It is of another run.")
        for name in self.biases:
            self.biases[name] = tensors[f"{name}.bias"].detach().clone().to(self.biases[name].device)

    def _left(self, step: int) -> float:
        """1, and over the last steps in equal parts down to 0, which the last step has."""
        released = max(1, round(self._steps * self._settings.release))
        return min(1.0, max(0.0, (self._steps - 1 - step) / released))


class BalancedOps(LearningTextOps):
    """The operations of a student, with experts in level numbers."""

    def __init__(self, tensors: Tensors, adapters: Adapters, balance: Balance, sharing: Sharing | None = None) -> None:
        super().__init__(tensors)
        self.adapters, self.sharing = adapters, sharing
        self._balance = balance

    def experts(self, x_TD: Tensor, scores_TE: Tensor, w: Experts, num_chosen: int) -> Tensor:
        bias = self._balance.bias_of(w)
        ranked_TE = scores_TE.detach() if bias is None else scores_TE.detach() + bias
        chosen_TX = torch.sort(ranked_TE, dim=-1, descending=True, stable=True).indices[:, :num_chosen]
        num_experts = scores_TE.shape[-1]
        counts_E = torch.bincount(chosen_TX.flatten(), minlength=num_experts)
        of_all_E = self._balance.of_all(counts_E)
        self._balance.count(w, of_all_E)
        if self._balance.is_learning and self._balance.loss_weight:
            scores_TE = levelled(scores_TE, of_all_E, self._balance.weight_here, int(of_all_E.sum()) // num_chosen)
        return self._routed(x_TD, scores_TE, w, chosen_TX, counts_E.tolist())

    def _routed(self, x_TD: Tensor, scores_TE: Tensor, w: Experts, chosen_TX: Tensor, counts: list[int]) -> Tensor:
        """Tokens sorted by expert, each expert's in one piece, and back. Of experts that other processes run, nothing comes from here."""
        shared = self.sharing if self.sharing is not None and self.sharing.settings.expert > 1 else None
        here = range(len(counts)) if shared is None else shared.experts(len(counts))
        if shared is not None:
            x_TD, scores_TE = shared.copied(x_TD, scores_TE)
        tokens, num_chosen = chosen_TX.shape
        order = torch.argsort(chosen_TX.flatten(), stable=True)
        rows = order.div(num_chosen, rounding_mode="floor")
        x = self.sigmoid_gate(
            x_TD.index_select(0, rows), scores_TE.flatten().index_select(0, rows * scores_TE.shape[1] + chosen_TX.flatten()[order])[:, None]
        )
        made = []
        for expert, piece in enumerate(torch.split(x, counts)):
            if expert not in here:
                made.append(piece * 0)  # so that every process has the same way back
            elif len(piece):
                gate, up, down = (self._tensors.expert(leaf, expert - here.start) for leaf in (w.gate, w.up, w.down))
                made.append(self.silu_gate(piece @ gate.T, piece @ up.T) @ down.T)
        back = torch.empty_like(order).index_put((order,), torch.arange(len(order), device=order.device))
        y = torch.cat(made).index_select(0, back)
        y = y if num_chosen == 1 else y.reshape(tokens, num_chosen, -1).to(self._wide).sum(dim=1).to(self._dtype)
        return y if shared is None else shared.summed(y)


def levelled(scores_TE: Tensor, counts_E: Tensor, weight: float, tokens: int = 0) -> Tensor:
    """The scores themselves; on the way back they also get the gradient of `weight` times the balancing loss of these tokens, or of their
    part of it where it is that of `tokens` tokens.

    The loss is E sum_e f_e P_e, with f_e the share of choices that fell on e and P_e the mean over tokens of softmax(scores)_e. 1 when
    level.
    """
    passed: Tensor = _Levelled.apply(scores_TE, counts_E, weight / (tokens or len(scores_TE)))  # type: ignore[no-untyped-call]
    return passed


class _Levelled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, scores_TE: Tensor, counts_E: Tensor, weight: float) -> Tensor:
        context.save_for_backward(scores_TE, counts_E)
        context.weight = weight
        return scores_TE.view_as(scores_TE)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        scores, counts = context.saved_tensors
        p = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        pull = scores.shape[-1] * counts / counts.sum().clamp(min=1)
        for_scores = p * (pull - (p * pull).sum(dim=-1, keepdim=True)) * context.weight
        return gradient + for_scores.to(gradient.dtype), None, None


def _layers_of(weights: object) -> dict[int, str]:
    """The name of each mixture, found by the leaf of its gates."""
    if not isinstance(weights, Llama4Weights):
        return {}
    return {id(layer.ffn.experts.gate): layer.at for layer in weights.layers if isinstance(layer.ffn, MixtureWeights)}
