"""How far apart two models (or two settings of one) are: KL(P || Q) of their next-token distributions, token by token.

P is the model that is taken as right, Q the one that is measured against it. Both must have the same token ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.errors import UsageError
from herd.evals.rows import Told, Window, Windowing, log_softmax, nobody, pieces, tokens_of, windows
from herd.providers.base import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """kl_*           KL(P || Q) per token in nats: mean, its standard error, median, 99th percentile, largest
    agreement         share of positions at which both have the same most likely token
    logprob_change    mean |log P(token) - log Q(token)| of the text's own tokens, and the largest
    nll_*             mean negative log-probability of the text under P and under Q
    """

    kl_mean: float
    kl_error: float
    kl_median: float
    kl_p99: float
    kl_max: float
    agreement: float
    logprob_change_mean: float
    logprob_change_max: float
    nll_p: float
    nll_q: float
    tokens: int
    window: int
    stride: int
    model_p: str
    model_q: str


def measure_divergence(
    p: Scorer,
    q: Scorer,
    text: str,
    windowing: Windowing = Windowing(),  # noqa: B008 (frozen)
    *,
    told: Told = nobody,
) -> Divergence:
    """Runs `text` through both. Keeps 33 bytes per token and a few rows of logits.

    `UsageError` if the two do not give the text the same token ids.
    """
    size, stride = windowing.resolved(min(p.facts.context_length, q.facts.context_length))
    tokens, prefix = tokens_of(p, text, windowing.max_tokens)
    if p.facts.vocab_size != q.facts.vocab_size:
        raise UsageError(
            f"{p.facts.name} has {p.facts.vocab_size} tokens and {q.facts.name} has {q.facts.vocab_size}; "
            "their distributions are over different things and cannot be compared."
        )
    if tokens_of(q, text, windowing.max_tokens) != (tokens, prefix):
        raise UsageError(f"{p.facts.name} and {q.facts.name} cut this text into different tokens; their distributions cannot be compared.")
    total = len(tokens) if prefix else len(tokens) - 1
    found: list[_Compared] = []
    done = 0
    for window in windows(tokens, prefix, size, stride):
        for compared in _compare(p, q, window):
            found.append(compared)
            done += len(compared.kl_t)
        told(done, total)
    return _summary(found, p, q, size, stride)


@dataclass(frozen=True, slots=True)
class _Compared:
    """One value per token of a piece."""

    kl_t: NDArray[np.float64]
    agree_t: NDArray[np.bool_]
    logprob_p_t: NDArray[np.float64]
    logprob_q_t: NDArray[np.float64]


def _compare(p: Scorer, q: Scorer, window: Window) -> list[_Compared]:
    targets_T = np.asarray(window.tokens, dtype=np.int64)
    found, position = [], 0
    for logits_p_tV, logits_q_tV in zip(pieces(p, window.tokens), pieces(q, window.tokens), strict=True):
        begin = max(window.first - 1 - position, 0)
        end = min(len(logits_p_tV), len(window.tokens) - 1 - position)
        if begin < end:
            log_p_tV, log_q_tV = log_softmax(logits_p_tV[begin:end]), log_softmax(logits_q_tV[begin:end])
            wanted_t, rows_t = targets_T[position + begin + 1 : position + end + 1], np.arange(end - begin)
            agree_t = logits_p_tV[begin:end].argmax(axis=1) == logits_q_tV[begin:end].argmax(axis=1)
            found.append(_Compared(_kl(log_p_tV, log_q_tV), agree_t, log_p_tV[rows_t, wanted_t], log_q_tV[rows_t, wanted_t]))
        position += len(logits_p_tV)
    return found


def _kl(log_p_tV: NDArray[np.float64], log_q_tV: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum p (log p - log q) of each row; a token that P rules out adds nothing."""
    p_tV = np.exp(log_p_tV)
    difference_tV = np.subtract(log_p_tV, log_q_tV, where=p_tV > 0, out=np.zeros_like(p_tV))
    values_t: NDArray[np.float64] = (p_tV * difference_tV).sum(axis=1)
    return np.maximum(values_t, 0.0)


def _summary(found: list[_Compared], p: Scorer, q: Scorer, size: int, stride: int) -> Divergence:
    kl_T = np.concatenate([piece.kl_t for piece in found])
    logprob_p_T = np.concatenate([piece.logprob_p_t for piece in found])
    logprob_q_T = np.concatenate([piece.logprob_q_t for piece in found])
    change_T = np.abs(logprob_p_T - logprob_q_T)
    return Divergence(
        kl_mean=float(kl_T.mean()),
        kl_error=float(kl_T.std(ddof=1) / np.sqrt(len(kl_T))) if len(kl_T) > 1 else float("inf"),
        kl_median=float(np.median(kl_T)),
        kl_p99=float(np.percentile(kl_T, 99)),
        kl_max=float(kl_T.max()),
        agreement=float(np.concatenate([piece.agree_t for piece in found]).mean()),
        logprob_change_mean=float(change_T.mean()),
        logprob_change_max=float(change_T.max()),
        nll_p=-float(logprob_p_T.mean()),
        nll_q=-float(logprob_q_T.mean()),
        tokens=len(kl_T),
        window=size,
        stride=stride,
        model_p=p.facts.name,
        model_q=q.facts.name,
    )
