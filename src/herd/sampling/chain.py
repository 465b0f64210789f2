"""From a row of logits to the next token: the definition, in numpy, of what backends may run natively.

    logits -> logit_bias -> repetition, presence, frequency penalties -> what is not allowed: -inf
           -> (temperature 0: the largest, and done) -> temperature -> top_k -> top_p -> min_p -> draw

Each step works on what the one before left, and probabilities are renormalised over what is left:

  order         candidates stand by falling adjusted logit, equal ones by rising id; everything below is a prefix of that order
  temperature   weight = exp((logit - largest) * (1 / temperature)); a weight under exp(-700) is nothing
  top_k         the first k
  top_p         a candidate stays while the probability of those before it is at most p: the one that crosses p is included
  min_p         a candidate stays while its weight is at least p times the first one's
  draw          the first candidate at which the cumulated weight exceeds u * total, u from `sampling.random`

Reported log-probabilities, of the chosen token and of the alternatives, are natural logarithms under the model's own
distribution: before bias, penalties, temperature, and what is allowed. All arithmetic is float64. `csrc/kernels/sample.cpp` does
the same natively; tests/sampling/test_native_sample.py holds the two together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from herd.errors import FileProblem, UsageError
from herd.sampling.draw import Choice, Draw
from herd.sampling.params import SamplingParams
from herd.sampling.random import uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST_EXPONENT = -700.0
LARGEST_FACTOR = 1e300


def choose(logits_V: NDArray[np.float32], draw: Draw) -> Choice:
    """One token from one row. `FileProblem` if the row holds NaN or +inf, or nothing but -inf."""
    raw_V = checked(logits_V, draw.position)
    adjusted_V = permitted(adjust(raw_V, draw), draw)
    if draw.params.temperature == 0.0:
        token = int(np.argmax(adjusted_V))
    else:
        ids, weights = candidates(adjusted_V, draw.params)
        token = int(ids[_pick(weights, uniform(draw.seed, draw.choice_index, draw.position))])
    return _reported(raw_V, token, draw.params.logprobs)


def token_logprob(logits_V: NDArray[np.float32], token: int, num_top: int, position: int) -> Choice:
    """What `choose` reports of a token that was given instead of drawn, from the row before it. `FileProblem` as there."""
    return _reported(checked(logits_V, position), token, num_top)


def checked(logits_V: NDArray[np.float32], position: int) -> NDArray[np.float64]:
    """The row in float64, if a distribution can be made of it."""
    raw_V = np.asarray(logits_V, np.float64)
    largest = raw_V.max()
    if not math.isfinite(largest):
        found = "NaN" if math.isnan(largest) else "+inf" if largest > 0 else "nothing but -inf"
        raise FileProblem(
            f"The logits for token {position} contain {found}; expected finite numbers. The weights are damaged, "
            "or their numbers exceed the range of the number format they are computed in."
        )
    return raw_V


def adjust(raw_V: NDArray[np.float64], draw: Draw) -> NDArray[np.float64]:
    """Logits after bias and penalties; the same array if there are none."""
    params = draw.params
    if not params.logit_bias and not params.uses_history:
        return raw_V
    adjusted_V = raw_V.copy()
    for token, bias in params.logit_bias.items():
        if token >= len(raw_V):
            raise UsageError(f"logit_bias names token {token}; the vocabulary has {len(raw_V)} (0 to {len(raw_V) - 1}).")
        adjusted_V[token] += bias
    if params.uses_history and len(draw.seen_ids):
        seen = adjusted_V[draw.seen_ids]
        seen = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        seen -= np.where(draw.answer_counts > 0, params.presence_penalty, 0.0) + params.frequency_penalty * draw.answer_counts
        adjusted_V[draw.seen_ids] = seen
    return adjusted_V


def permitted(adjusted_V: NDArray[np.float64], draw: Draw) -> NDArray[np.float64]:
    """Logits with -inf for what is not allowed; the same array if all is. `FileProblem` if no allowed token has a probability."""
    if draw.allowed is None:
        return adjusted_V
    bits = np.unpackbits(draw.allowed.astype("<u4").view(np.uint8), bitorder="little")[: len(adjusted_V)]
    permitted_V = np.where(bits == 1, adjusted_V, -np.inf)
    if not math.isfinite(permitted_V.max()):
        raise FileProblem(f"No token that may come at position {draw.position} has a probability: their logits are all -inf.")
    return permitted_V


def candidates(adjusted_V: NDArray[np.float64], params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids that may be drawn, by falling weight, and their weights relative to the first one's (not normalised)."""
    ids = np.argsort(-adjusted_V, kind="stable")
    if params.top_k:
        ids = ids[: params.top_k]
    with np.errstate(over="ignore"):
        exponents = (adjusted_V[ids] - adjusted_V[ids[0]]) * min(1.0 / params.temperature, LARGEST_FACTOR)
    weights = np.where(exponents < SMALLEST_EXPONENT, 0.0, np.exp(np.maximum(exponents, SMALLEST_EXPONENT)))
    if params.top_p < 1.0:
        cumulated = np.cumsum(weights)
        before = np.concatenate([[0.0], cumulated[:-1]])
        weights = weights[: np.count_nonzero(before <= params.top_p * cumulated[-1])]
    if params.min_p > 0.0:
        weights = weights[: np.count_nonzero(weights >= params.min_p)]
    return ids[: len(weights)], weights


def log_sum_exp(row_V: NDArray[np.float64]) -> float:
    """ln(sum(exp(row))) of a row with a finite largest value."""
    largest = float(row_V.max())
    return largest + math.log(float(np.exp(row_V - largest).sum()))


def _reported(raw_V: NDArray[np.float64], token: int, num_top: int) -> Choice:
    """The token and the `num_top` most likely ones with their log-probabilities."""
    normaliser = log_sum_exp(raw_V)
    first = _most_likely(raw_V, num_top)
    return Choice(token, float(raw_V[token] - normaliser), tuple((int(i), float(raw_V[i] - normaliser)) for i in first))


def _pick(weights: NDArray[np.float64], u: float) -> int:
    cumulated = np.cumsum(weights)
    return min(int(np.searchsorted(cumulated, u * cumulated[-1], side="right")), int(np.count_nonzero(weights)) - 1)


def _most_likely(raw_V: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest, falling; equal ones by rising id."""
    count = min(count, len(raw_V))
    if count == 0:
        return np.zeros(0, np.int64)
    smallest = np.partition(raw_V, len(raw_V) - count)[len(raw_V) - count]
    ids = np.flatnonzero(raw_V >= smallest)
    return ids[np.argsort(-raw_V[ids], kind="stable")][:count]
