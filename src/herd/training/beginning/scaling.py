"""How large a model, on how many tokens, in which batches and how fast it should learn, for a budget of operations. Free of torch.

    operations   6 N D: of a forward and a backward pass of N weights over D tokens (arXiv 2001.08361); attention comes on top
    tokens       where the fitted loss is lowest for the budget: L = 1.8172 + 482.01 / N^0.3478 + 2085.43 / D^0.3658, the refit of
                 Chinchilla's third approach (arXiv 2404.10102); about 20 for each weight (arXiv 2203.15556). As Meta did it:
                 D = 0.299 C^0.537 (arXiv 2407.21783, section 3.2.1), fitted from 6e18 to 1e22 operations
    batch        0.2920 C^0.3271 tokens, learning rate 0.3118 C^-0.1250 (arXiv 2401.02954, section 3.1), fitted from 1e17 to 2e19 operations
    shape        about 100 of width for each layer, as the small Llamas are, heads of 64, a feed-forward of 8/3 of the width

Far outside the range of a fit its number is a guess, and that is said. A small model is often worth training for longer than is best for
its loss: it is cheaper to run ever after. `tokens_per_weight` fixes that ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from herd.errors import UsageError
from herd.records import dataclass

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
META_FACTOR, META_POWER, META_RANGE = 0.299, 0.537, (6e18, 1e22)
BATCH_FACTOR, BATCH_POWER, RATE_FACTOR, RATE_POWER, BATCH_RANGE = 0.2920, 0.3271, 0.3118, -0.1250, (1e17, 2e19)
RULES = ("chinchilla", "meta")
ASPECT = 100
LEAST_STEPS = 100
FITTED_WEIGHTS = 4e7
"""Of the smallest models that the loss was fitted on."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a budget buys. `weights` N and `tokens` D with 6 N D = `operations`; `loss` as fitted, on web text of its makers,
    None for a model smaller than theirs; `notes`: what
    to know about the numbers."""

    operations: float
    weights: int
    tokens: int
    batch_tokens: int
    steps: int
    lr: float
    loss: float | None
    width: int
    layers: int
    notes: tuple[str, ...]


def suggest(operations: float, *, rule: str = "chinchilla", tokens_per_weight: float | None = None, vocab_size: int = 0) -> Suggestion:
    """The best use of so many operations. `vocab_size`: rows of the table, which count among the weights of a small model.

    `UsageError` for a budget that is none.
    """
    if not (math.isfinite(operations) and operations >= 1e9):
        raise UsageError(f"The budget is {operations} operations; at least 1e9 are needed to learn anything.")
    if rule not in RULES:
        raise UsageError(f"There is no rule {rule!r}: {', '.join(RULES)}.")
    if tokens_per_weight is not None and not (math.isfinite(tokens_per_weight) and tokens_per_weight > 0):
        raise UsageError(f"There are {tokens_per_weight} tokens for each weight; give a number above 0.")
    if tokens_per_weight is not None:
        weights = math.sqrt(operations / (6 * tokens_per_weight))
    elif rule == "meta":
        weights = operations / (6 * META_FACTOR * operations**META_POWER)
    else:
        weights = best_weights(operations)
    tokens = operations / (6 * weights)
    batch = min(BATCH_FACTOR * operations**BATCH_POWER, tokens / LEAST_STEPS)
    batch_tokens = 2 ** max(8, round(math.log2(max(batch, 1))))
    width, layers = shape_for(weights, vocab_size)
    return Suggestion(
        operations=operations,
        weights=round(weights),
        tokens=round(tokens),
        batch_tokens=batch_tokens,
        steps=max(1, round(tokens / batch_tokens)),
        lr=float(f"{RATE_FACTOR * operations**RATE_POWER:.2g}"),
        loss=fitted_loss(weights, tokens) if weights >= FITTED_WEIGHTS else None,
        width=width,
        layers=layers,
        notes=tuple(_notes(operations, rule if tokens_per_weight is None else "", weights, vocab_size, width)),
    )


def fitted_loss(weights: float, tokens: float) -> float:
    """Nats for a token after so many tokens, by the fit."""
    return float(E + A / weights**ALPHA + B / tokens**BETA)


def best_weights(operations: float) -> float:
    """N for which the fitted loss is lowest, D being operations / 6 N: where the two terms' derivatives cancel."""
    return float((ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (operations / 6) ** (BETA / (ALPHA + BETA)))


def shape_for(weights: float, vocab_size: int) -> tuple[int, int]:
    """Width and layers of a llama of about so many weights, tied table included: 12 width^2 of each layer, about 100 of width for each."""
    found = [
        (
            abs(math.log((12 * layers * width**2 + vocab_size * width) / weights)) + 0.1 * abs(math.log(width / layers / ASPECT)),
            width,
            layers,
        )
        for width in (*range(32, 1024, 32), *range(1024, 20481, 256))
        for layers in range(2, 161)
    ]
    _, width, layers = min(found)
    return width, layers


def operations_in(seconds: float, operations_per_s: float) -> float:
    """A budget of time as one of operations."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"The budget is {seconds} seconds; give a time above 0, such as 30min, 8h or 2d.")
    return seconds * operations_per_s


def _notes(operations: float, rule: str, weights: float, vocab_size: int, width: int) -> Iterator[str]:
    if rule == "meta" and not META_RANGE[0] <= operations <= META_RANGE[1]:
        yield f"Meta's rule for tokens was fitted from {META_RANGE[0]:.0e} to {META_RANGE[1]:.0e} operations; this budget lies outside."
    if not rule:
        yield "The number of tokens for each weight is yours; the loss may be lower with another."
    elif rule == "chinchilla" and weights < FITTED_WEIGHTS:
        yield f"The sharing was fitted on models of at least {FITTED_WEIGHTS:.0e} weights; of smaller ones it is a guess."
    if not BATCH_RANGE[0] <= operations <= BATCH_RANGE[1]:
        yield (
            f"Batch and learning rate were fitted from {BATCH_RANGE[0]:.0e} to {BATCH_RANGE[1]:.0e} operations; this budget is "
            f"{'smaller' if operations < BATCH_RANGE[0] else 'larger'}: try half and twice the learning rate."
        )
    if vocab_size and vocab_size * width > weights / 2:
        yield f"More than half of the weights would be the table of {vocab_size:,} tokens; a smaller vocabulary leaves more for the layers."
