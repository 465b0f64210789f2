"""What to say of logits that are not numbers to go on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from herd.backends.base import Plan


def not_finite(plan: Plan, logits: Callable[[Plan], Tensor]) -> str:
    """Where the first ones are. In a step of several tokens a later one spoils those before it (zero times infinity is not a number), so
    the tokens are gone through again, one by one, by `logits`: a plan -> [R, V]."""
    for span in plan.spans:
        for offset, token in enumerate(span.tokens):
            alone = replace(span, start=span.start + offset, tokens=(token,), num_outputs=1, draws=())
            logits_V = logits(Plan((alone,)))[0]
            if offset < len(span.tokens) - span.num_outputs or bool(logits_V.isfinite().all()):
                continue
            first = int((~logits_V.isfinite()).nonzero()[0])
            return (
                f"The logit of token {first} at position {span.start + offset} is {float(logits_V[first])}, not a number to go on "
                "with. Weights that are damaged or too large for this number format do that: check the file against its published "
                "SHA-256, or compute in a wider type (dtype)."
            )
    return "The logits of a step were not finite, though those of each token alone are. Compute in a wider type (dtype)."
