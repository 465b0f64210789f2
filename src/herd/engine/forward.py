"""Runs the parts of one step on the backend, and finds out who is to blame if that fails."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import replace
from typing import TYPE_CHECKING

from herd.backends.base import Backend, Plan, Span
from herd.engine.request import Purpose, Sequence
from herd.engine.scheduler import Part
from herd.errors import CapacityError, HerdError
from herd.records import dataclass
from herd.sampling.draw import Choice, Draw

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the backend made of one part: a choice if it drew, logits rows if they were wanted, or an error."""

    choice: Choice | None = None
    logits_RV: NDArray[np.float32] | None = None
    error: HerdError | None = None


def forward(backend: Backend, parts: List[Part]) -> list[Outcome]:
    """One outcome per part. If the step fails as a whole, each part is run alone: a step can be repeated, as it writes the
    same values to the same places and random numbers are a function of the position."""
    try:
        return _step(backend, parts)
    except Exception as problem:
        if len(parts) == 1:
            return [Outcome(error=_as_error(problem))]
    return [outcome for part in parts for outcome in forward(backend, [part])]


def _step(backend: Backend, parts: List[Part]) -> list[Outcome]:
    plan = Plan(tuple(map(_span, parts)), want_logits=any(part.sequence.purpose is Purpose.SCORES for part in parts))
    result = backend.step(plan)
    outcomes, row = [], 0
    for part, choice in zip(parts, result.choices, strict=True):
        rows = None
        if part.sequence.purpose is Purpose.SCORES and part.num_outputs:
            assert result.logits_RV is not None
            rows = result.logits_RV[row : row + part.num_outputs].copy()
        row += part.num_outputs
        outcomes.append(Outcome(choice, rows))
    return outcomes


def _span(part: Part) -> Span:
    sequence = part.sequence
    return Span(
        start=part.start,
        tokens=sequence.tokens[part.start : part.end],
        pages=sequence.pages,
        num_outputs=part.num_outputs,
        draw=_draw(sequence) if part.draws else None,
        pictures=sequence.pictures,
    )


def _draw(sequence: Sequence) -> Draw:
    draw = Draw(params=sequence.sampling, seed=sequence.seed, position=sequence.length, choice_index=sequence.choice_index)
    if sequence.history is None:
        return draw
    return replace(draw, seen_ids=sequence.history.ids, answer_counts=sequence.history.counts)


def _as_error(problem: Exception) -> HerdError:
    if isinstance(problem, HerdError):
        return problem
    if isinstance(problem, MemoryError):
        error: HerdError = CapacityError("There was not enough memory for a step. Shorter prompts or a smaller cache need less.")
    else:
        error = HerdError(f"The backend failed unexpectedly ({type(problem).__name__}: {problem}). This is a fault of herd.")
    error.__cause__ = problem
    return error
