"""How well a model predicts a text: the exponential of the mean negative log-probability of its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.evals.rows import Told, Windowing, next_token_logprobs, nobody, tokens_of, windows
from herd.providers.base import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """nll         mean negative natural-log probability per token
    nll_error      standard error of that mean over tokens (neighbours are not independent: a lower bound)
    perplexity     exp(nll), and what it would be one standard error lower and higher
    tokens         number of tokens that were scored
    """

    nll: float
    nll_error: float
    perplexity: float
    perplexity_low: float
    perplexity_high: float
    tokens: int
    window: int
    stride: int
    model: str
    fingerprint: str


def measure_perplexity(
    scorer: Scorer,
    text: str,
    windowing: Windowing = Windowing(),  # noqa: B008 (frozen)
    *,
    told: Told = nobody,
    each: Callable[[list[int], NDArray[np.float64]], None] | None = None,
) -> Perplexity:
    """Scores every token of `text` once. `each` gets the token ids and log-probabilities of every stretch as it is done.

    Memory is that of a few rows of logits, however long the text.
    """
    size, stride = windowing.resolved(scorer.facts.context_length)
    tokens, prefix = tokens_of(scorer, text, windowing.max_tokens)
    total = len(tokens) if prefix else len(tokens) - 1
    count, mean, squares = 0, 0.0, 0.0
    for window in windows(tokens, prefix, size, stride):
        at = window.first
        for logprobs_t in next_token_logprobs(scorer, window.tokens, window.first):
            if each is not None:
                each(window.tokens[at : at + len(logprobs_t)], logprobs_t)
            at += len(logprobs_t)
            count, mean, squares = _merged(count, mean, squares, -logprobs_t)
        told(count, total)
    error = math.sqrt(squares / (count - 1) / count) if count > 1 else math.inf
    return Perplexity(
        nll=mean,
        nll_error=error,
        perplexity=_exp(mean),
        perplexity_low=_exp(mean - error),
        perplexity_high=_exp(mean + error),
        tokens=count,
        window=size,
        stride=stride,
        model=scorer.facts.name,
        fingerprint=scorer.facts.fingerprint,
    )


def _merged(count: int, mean: float, squares: float, values_t: NDArray[np.float64]) -> tuple[int, float, float]:
    """Count, mean and sum of squared deviations with more values, stable however many there are (Chan et al. 1979)."""
    more, more_mean = len(values_t), float(values_t.mean())
    total, step = count + more, more_mean - mean
    squares += float(((values_t - more_mean) ** 2).sum()) + step * step * count * more / total
    return total, mean + step * more / total, squares


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
