"""Every loss of tuning after pretraining, as a pure function of log-probabilities: paper, formula, code.

    rows       [R]  log p(token | what stands before), one for each token of an answer that counts
    documents  [N]  sums over the rows of one answer (`document_sums`)
    pairs      [P]  a chosen and a rejected answer to one prompt

A loss gives one number for each document, pair or row, so that who calls it decides how they are averaged; `token_weights` has
the ways of the papers. Everything is computed in the type that it is given (float32 in a run, float64 in tests). sigmoid(x) is
1 / (1 + exp(-x)), π the model that is trained, π_ref the one that it started from, |y| how many tokens of an answer count.
Divergences from a teacher are in `divergences.py`; what a token costs by itself, all that supervised fine-tuning asks, is in
`student/cross_entropy.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from herd.errors import UsageError

ADVANTAGE_EPSILON = 1e-4
"""Added to the standard deviation of a group's rewards."""


def document_sums(values_R: Tensor, document_R: Tensor, num_documents: int) -> Tensor:
    """Rows -> [N]: the sum over the rows of each document; 0 for one without rows."""
    return values_R.new_zeros(num_documents).index_add(0, document_R, values_R)


def dpo(chosen_P: Tensor, rejected_P: Tensor, beta: float, label_smoothing: float = 0.0, margin_P: Tensor | float = 0.0) -> Tensor:
    """Direct preference optimisation (arXiv 2305.18290, equation 7) -> [P].

    `chosen_P`, `rejected_P`: log π(y) - log π_ref(y) of the answers (sums over tokens).
        L = - (1 - ε) log sigmoid(β (chosen - rejected) - m) - ε log sigmoid(m - β (chosen - rejected))
    `label_smoothing` ε: the share of labels that may be wrong (section 3 of the same authors' note on noisy labels); 0 is the paper's.
    `margin_P` m: how far ahead the chosen one has to be, as much better as it was judged (arXiv 2402.10571, equation 8).
    """
    return _smoothed(beta * (chosen_P - rejected_P) - margin_P, label_smoothing)


def dpo_nll(chosen_logprob_P: Tensor, chosen_count_P: Tensor) -> Tensor:
    """The term that keeps chosen answers likely (arXiv 2404.19733; Llama 3, arXiv 2407.21783 section 4.1.4, takes 0.2 of it) -> [P].

    `chosen_logprob_P`: log π(y_w), the sum over its `chosen_count_P` tokens.   - log π(y_w) / |y_w|
    """
    return -chosen_logprob_P / chosen_count_P


def simpo(chosen_mean_P: Tensor, rejected_mean_P: Tensor, beta: float, gamma: float, label_smoothing: float = 0.0) -> Tensor:
    """SimPO (arXiv 2405.14734, equation 6), which needs no reference -> [P].

    The means are log π(y) / |y|.   L = - log sigmoid(β chosen - β rejected - gamma)
    """
    return _smoothed(beta * (chosen_mean_P - rejected_mean_P) - gamma, label_smoothing)


def orpo(chosen_mean_P: Tensor, rejected_mean_P: Tensor) -> Tensor:
    """The odds-ratio term of ORPO (arXiv 2403.07691, equation 7) -> [P]; the whole loss is nll(chosen) + λ times this.

    The means are log p, with p = π(y)^(1/|y|), and odds = p / (1 - p).   L = - log sigmoid(log odds(y_w) - log odds(y_l))
    """
    log_odds_P = (chosen_mean_P - log_of_rest(chosen_mean_P)) - (rejected_mean_P - log_of_rest(rejected_mean_P))
    return -logsigmoid(log_odds_P)


def kto_kl(mismatched_M: Tensor) -> Tensor:
    """KTO's estimate z of KL(π || π_ref), a number without gradient (arXiv 2402.01306, section 4.1).

    `mismatched_M`: log π(y') - log π_ref(y') of answers y' after prompts of other answers.   z = max(0, mean)
    """
    return mismatched_M.detach().mean().clamp(min=0)


def kto(ratio_N: Tensor, is_desirable_N: Tensor, kl: Tensor, beta: float, desirable: float = 1.0, undesirable: float = 1.0) -> Tensor:
    """Kahneman-Tversky optimisation (arXiv 2402.01306, section 4.1) -> [N].

    `ratio_N`: log π(y) - log π_ref(y) of single answers; `kl`: the point of reference z, of `kto_kl`.
        L = λ_D (1 - sigmoid(β (ratio - z))) for a desirable answer, λ_U (1 - sigmoid(β (z - ratio))) for another
    """
    kl = kl.detach()
    good_N = desirable * torch.sigmoid(-beta * (ratio_N - kl))
    return torch.where(is_desirable_N, good_N, undesirable * torch.sigmoid(beta * (ratio_N - kl)))


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | float = 0.0, centre: float = 0.0) -> Tensor:
    """A reward model's loss -> [P] (Llama 2, arXiv 2307.09288, equation 2; Llama 3 leaves the margin out).

    `chosen_P`, `rejected_P`: rewards; `margin_P`: how much better the chosen one was judged.
        L = - log sigmoid(r_w - r_l - m) + c (r_w + r_l)²
    `centre` c keeps rewards near zero, as only their differences are learned (arXiv 2312.09244, section 2).
    """
    return -logsigmoid(chosen_P - rejected_P - margin_P) + centre * (chosen_P + rejected_P) ** 2


def advantages(rewards_GK: Tensor, scale: str = "group") -> Tensor:
    """How much better each answer is than the others to its prompt, [G, K] -> [G, K].

    A = (r - mean of the group) / (s + 1e-4), with s by `scale`:
        group   standard deviation of the group (GRPO, arXiv 2402.03300, section 4.1.2)
        batch   standard deviation over all answers (arXiv 2508.08221)
        none    s + 1e-4 is left out (Dr. GRPO, arXiv 2503.20783: dividing favours prompts that are too easy or too hard)
    """
    centred_GK = rewards_GK - rewards_GK.mean(dim=1, keepdim=True)
    match scale:
        case "none":
            return centred_GK
        case "group":
            return centred_GK / (rewards_GK.std(dim=1, keepdim=True) + ADVANTAGE_EPSILON)
        case "batch":
            return centred_GK / (rewards_GK.std() + ADVANTAGE_EPSILON)
    raise UsageError(f"There is no scale of advantages {scale!r:.40}; there are group, batch and none.")


def is_informative(rewards_GK: Tensor) -> Tensor:
    """Which groups teach anything: those whose rewards differ [G] (DAPO's dynamic sampling, arXiv 2503.14476, section 3.2)."""
    return rewards_GK.amax(dim=1) > rewards_GK.amin(dim=1)


def overlong_penalty(lengths_N: Tensor, longest: int, buffer: int) -> Tensor:
    """What DAPO takes from the reward of an answer that comes near the longest allowed (arXiv 2503.14476, section 3.4) -> [N].

    0 up to `longest` - `buffer` tokens, from there on linearly down to -1 at `longest`.
    """
    return ((longest - buffer - lengths_N.to(torch.float32)) / buffer).clamp(-1.0, 0.0)


def clipped_gain(logprobs_R: Tensor, old_R: Tensor, advantages_R: Tensor, low: float, high: float) -> Tensor:
    """The clipped objective of PPO as GRPO uses it, negated to be minimised -> [R].

    r = π(token) / π_old(token).   L = - min(r A, clip(r, 1 - low, 1 + high) A)
    GRPO (arXiv 2402.03300, equation 3): low = high = 0.2. DAPO's clip-higher (arXiv 2503.14476, section 3.1): 0.2 and 0.28.
    """
    ratio_R = torch.exp(logprobs_R - old_R)
    return -torch.minimum(ratio_R * advantages_R, ratio_R.clamp(1 - low, 1 + high) * advantages_R)


def is_clipped(logprobs_R: Tensor, old_R: Tensor, advantages_R: Tensor, low: float, high: float) -> Tensor:
    """Which tokens gave no gradient because their ratio had left the trusted range [R]."""
    ratio_R = torch.exp(logprobs_R - old_R)
    return ((ratio_R < 1 - low) & (advantages_R < 0)) | ((ratio_R > 1 + high) & (advantages_R > 0))


def k3(logprobs_R: Tensor, reference_R: Tensor) -> Tensor:
    """An estimate of KL(π || π_ref) from the sampled token alone -> [R]: unbiased, never negative (GRPO, arXiv 2402.03300, equation 4).

    exp(d) - d - 1 with d = log π_ref - log π
    """
    difference_R = reference_R - logprobs_R
    return torch.expm1(difference_R) - difference_R


def sampler_weight(trainer_R: Tensor, sampler_R: Tensor, most: float) -> Tensor:
    """What makes good that answers were drawn by an engine whose probabilities differ a little from the trainer's -> [R], no gradient.

    min(π_trainer / π_sampler, most), truncated importance sampling (as arXiv 1802.01561, section 4.1)
    """
    return torch.exp(trainer_R - sampler_R).clamp(max=most).detach()


def token_weights(lengths_N: Tensor, over: str, longest: int = 0, counts_N: Tensor | None = None) -> Tensor:
    """What each token of an answer counts, so that the sum over all tokens is the mean that is asked for, whatever is computed
    together -> [N]. Answers that `counts_N` leaves out count nothing. `over`:

    answers   the mean of the means of the answers (GRPO, equation 3): a token of a long answer counts less
    tokens    the mean over all tokens that count (DAPO, arXiv 2503.14476, section 3.3)
    constant  the sum over all tokens divided by answers times `longest` (Dr. GRPO, arXiv 2503.20783): no length is favoured
    """
    counts_N = torch.ones_like(lengths_N) if counts_N is None else counts_N
    counts_N, lengths_N = counts_N.to(torch.float64), lengths_N.to(torch.float64)
    match over:
        case "answers":
            return counts_N / (len(lengths_N) * lengths_N.clamp(min=1))
        case "tokens":
            return counts_N / (counts_N * lengths_N).sum().clamp(min=1)
        case "constant":
            assert longest > 0, "the longest answer that may be drawn"
            return counts_N / (len(lengths_N) * longest)
    raise UsageError(f"There is no mean over {over!r:.40}; there are answers, tokens and constant.")


def log_of_rest(logprob: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact near 0 and far from it (Mächler, 2012). x = 0 counts as the number below it."""
    least = -torch.finfo(logprob.dtype).eps
    logprob = logprob.clamp(max=least)
    is_near = logprob > -math.log(2)
    # Each branch gets arguments of its own half only: what the other would make of them would spoil the gradient.
    near = torch.log(-torch.expm1(torch.where(is_near, logprob, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(is_near, -1.0, logprob)))
    return torch.where(is_near, near, far)


def _smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    """- (1 - ε) log sigmoid(x) - ε log sigmoid(-x)"""
    loss = -logsigmoid(logits)
    return loss if label_smoothing == 0 else (1 - label_smoothing) * loss - label_smoothing * logsigmoid(-logits)
