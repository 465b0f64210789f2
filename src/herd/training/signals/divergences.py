"""How far a student's next-token distribution is from a teacher's, when of the teacher only the most likely tokens are known.

A teacher's row is kept as the log-probabilities of its k most likely tokens and of all the rest together. `grouped` makes the same
k + 1 outcomes of the student's logits, so that both are distributions: nothing is scaled up to sum to 1 (which would teach that the
rest is impossible), nothing is left out (which would leave its mass free). By the data-processing inequality the divergence of the
grouped distributions never exceeds that of the whole ones, and with k = V they are equal.

p is the teacher, q the student. All functions take log-probabilities [..., outcomes] and give [...]; a probability of 0 (-inf) of the
one whose mean is taken adds nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from herd.errors import UsageError
from herd.records import dataclass

SHAPES = ("constant", "linear", "cosine")


def grouped(logits_RV: Tensor, ids_RK: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits -> log-probabilities of the tokens `ids_RK` and of all others together [R, K + 1], differentiable.

    The others are summed by themselves, not as 1 minus the rest, so that a mass of 1e-30 keeps its gradient. With K = V it is -inf."""
    logits_RV = logits_RV if temperature == 1 else logits_RV / temperature
    total_R1 = torch.logsumexp(logits_RV, dim=1, keepdim=True)
    chosen_RK = logits_RV.gather(1, ids_RK)
    if ids_RK.shape[1] == logits_RV.shape[1]:
        return torch.cat([chosen_RK - total_R1, torch.full_like(total_R1, -math.inf)], dim=1)
    rest_R1 = torch.logsumexp(logits_RV.scatter(1, ids_RK, -math.inf), dim=1, keepdim=True)
    return torch.cat([chosen_RK, rest_R1], dim=1) - total_R1


def most_likely(logits_RV: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """A teacher's logits -> (ids [R, K], log-probabilities [R, K + 1] with that of all others last)."""
    ids_RK = logits_RV.topk(min(k, logits_RV.shape[1]), dim=1).indices
    return ids_RK, grouped(logits_RV, ids_RK, temperature)


def forward_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = Σ p (log p - log q): the student has to cover all that the teacher does (arXiv 1503.02531)."""
    return _mean_of_difference(p, q)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(q || p) = Σ q (log q - log p): the student keeps to what the teacher does (MiniLLM, arXiv 2306.08543)."""
    return _mean_of_difference(q, p)


def jensen_shannon(p: Tensor, q: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p || m) + (1 - β) KL(q || m) with m = β p + (1 - β) q (generalised, GKD, arXiv 2306.13649, equation 1), 0 < β < 1."""
    mixture = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return beta * _mean_of_difference(p, mixture) + (1 - beta) * _mean_of_difference(q, mixture)


def divergence(name: str, p: Tensor, q: Tensor, beta: float = 0.5) -> Tensor:
    """By its name in settings: forward, reverse or js."""
    match name:
        case "forward":
            return forward_kl(p, q)
        case "reverse":
            return reverse_kl(p, q)
        case "js":
            return jensen_shannon(p, q, beta)
    raise UsageError(f"There is no divergence {name!r:.40}; there are forward, reverse and js.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftWeight:
    """How much the teacher's distribution counts, beside the token that really follows, as training goes on.

        loss = w · divergence + (1 - w) · nll      w from `start` at the first step to `end` at the last

    Llama 4's pretraining by co-distillation weights both dynamically; its shape was not published, so it is a setting here.
    """

    start: float = 0.5
    end: float = 0.5
    shape: str = "linear"

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise UsageError(f"The weight of soft targets goes from {self.start} to {self.end}; both must be from 0 to 1.")
        if self.shape not in SHAPES:
            raise UsageError(f"There is no shape {self.shape!r:.40} of the weight of soft targets; there are {', '.join(SHAPES)}.")

    def at(self, step: int, steps: int) -> float:
        """w at a step, counted from 0, of a run of `steps`."""
        share = min(1.0, step / max(1, steps - 1))
        if self.shape == "constant":
            return self.start
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share


def _mean_of_difference(p: Tensor, q: Tensor) -> Tensor:
    """Σ exp(p) (p - q); outcomes of probability 0 under p add nothing, and no NaN to gradients."""
    is_possible = p > -math.inf
    p, q = torch.where(is_possible, p, 0.0), torch.where(is_possible, q, 0.0)
    return torch.where(is_possible, p.exp() * (p - q), 0.0).sum(dim=-1)
