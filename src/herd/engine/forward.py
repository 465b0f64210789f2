"""Runs the parts of one step on the backend, and finds out who is to blame if that fails."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as List
from dataclasses import replace
from time import thread_time
from typing import TYPE_CHECKING, Protocol, final

from herd.backends.base import Backend, Plan, Span, StepResult
from herd.engine.parts import Part
from herd.engine.request import Progress, Purpose, Sequence
from herd.errors import CapacityError, HerdError
from herd.records import dataclass
from herd.sampling.draw import NO_TOKENS, Choice, Draw
from herd.sampling.stop import StopReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.sampling.matching import Matcher


class Steps(Protocol):
    """What of a backend a step needs."""

    vocab_size: int

    def step(self, plan: Plan) -> StepResult: ...


@final
class Timed:
    """A backend's steps. `model_s`: CPU time that this thread has spent in them, which is the model's and not the scheduler's."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.vocab_size = backend.vocab_size
        self.model_s = 0.0

    def step(self, plan: Plan) -> StepResult:
        before = thread_time()
        try:
            return self._backend.step(plan)
        finally:
            self.model_s += thread_time() - before


@dataclass(slots=True, eq=False)  # made for every token, as `Part`
class Outcome:
    """What the backend made of one part: choices if it drew, logits rows if they were wanted, or an error."""

    choices: tuple[Choice, ...] = ()
    logits_RV: NDArray[np.float32] | None = None
    error: HerdError | None = None


def forward(backend: Steps, parts: List[Part]) -> list[Outcome]:
    """One outcome per part. If the step fails as a whole, each part is run alone: a step can be repeated, as it writes the
    same values to the same places and random numbers are a function of the position. What fails with drafted tokens is run again
    without: a token that nobody would have chosen must not be to blame. A part that has a problem already is not run."""
    if not all([part.problem is None for part in parts]):
        able = [part for part in parts if part.problem is None]
        made = iter(forward(backend, able) if able else ())
        return [next(made) if part.problem is None else Outcome(error=part.problem) for part in parts]
    try:
        return _step(backend, parts)
    except Exception as problem:
        if len(parts) == 1 and not parts[0].drafted:
            return [Outcome(error=_as_error(problem))]
    if len(parts) == 1:
        return forward(backend, [replace(parts[0], drafted=())])
    return [outcome for part in parts for outcome in forward(backend, [part])]


def accepted(part: Part, choices: List[Choice]) -> Iterator[Progress]:
    """Adds to the sequence what was chosen: all choices up to the first that the drafted tokens did not foresee, which were made after
    the very tokens that the sequence now has, or up to the one that ends it. A sequence whose language allows nothing more has ended:
    the last progress then has no token."""
    sequence = part.sequence
    for choice, foreseen in zip(choices, [*part.drafted, None], strict=False):
        progress = extended(sequence, choice)
        yield progress
        if sequence.stop_reason is not None and progress.stop_reason is None:  # the language's own end comes after the token
            yield Progress(sequence=sequence, stop_reason=StopReason.END)
        if sequence.stop_reason is not None or choice.token != foreseen:
            return


def extended(sequence: Sequence, choice: Choice) -> Progress:
    """The sequence has one token more. Its `stop_reason` is set if it ends with that; a language that is complete with it, and can have
    no more, ends it after this progress."""
    token = choice.token
    sequence.tokens.append(token)
    if sequence.history is not None:
        sequence.history.add(token)
    reason = None
    if token in sequence.stop_ids:
        reason = StopReason.END
    elif sequence.matcher is not None and _is_whole_with(sequence.matcher, token):
        sequence.stop_reason = StopReason.END
        return Progress(sequence=sequence, token=token, logprob=choice.logprob, top=choice.top)
    elif len(sequence.tokens) == sequence.max_length:
        reason = StopReason.LENGTH
    sequence.stop_reason = reason
    return Progress(sequence=sequence, token=token, logprob=choice.logprob, top=choice.top, stop_reason=reason)


def _is_whole_with(matcher: Matcher, token: int) -> bool:
    """Whether an answer is complete, and can have no more, once it has this token."""
    matcher.advance(token)
    return matcher.is_done


def _step(backend: Steps, parts: List[Part]) -> list[Outcome]:
    has_scores = any([part.sequence.purpose is Purpose.SCORES for part in parts])
    result = backend.step(Plan(tuple(map(_span, parts)), want_logits=has_scores))
    if not has_scores:
        return list(map(Outcome, result.choices))
    outcomes, row = [], 0
    for part, choices in zip(parts, result.choices, strict=True):
        rows = None
        if part.sequence.purpose is Purpose.SCORES and part.num_outputs:
            assert result.logits_RV is not None
            rows = result.logits_RV[row : row + part.num_outputs].copy()
        row += part.num_outputs + len(part.drafted)
        outcomes.append(Outcome(choices, rows))
    return outcomes


def _span(part: Part) -> Span:
    sequence = part.sequence
    if not (part.drafted or part.masks) and part.draws:  # nearly all of them
        start = part.start
        draw = sequence.draw
        if draw is None or sequence.history is not None:
            draw = sequence.draw = draw_after(sequence, ())
        else:
            draw.position = len(sequence.tokens)
        tokens = sequence.tokens[start : start + part.count]
        return Span(start, tokens, sequence.pages, part.num_outputs, (draw,), sequence.pictures, sequence.adapter)
    return Span(
        start=part.start,
        tokens=[*sequence.tokens[part.start : part.end], *part.drafted],
        pages=sequence.pages,
        num_outputs=part.num_outputs + len(part.drafted),
        draws=tuple(_draws(part)) if part.draws else (),
        pictures=sequence.pictures,
        adapter=sequence.adapter,
    )


def _draws(part: Part) -> Iterator[Draw]:
    """A draw after the part, and one after each of its drafted tokens."""
    for known in range(len(part.drafted) + 1):
        draw = draw_after(part.sequence, part.drafted[:known])
        yield replace(draw, allowed=part.masks[known]) if part.masks else draw


def draw_after(sequence: Sequence, drafted: tuple[int, ...]) -> Draw:
    """The very draw that would be made if the sequence had gone on with the `drafted` tokens."""
    history = sequence.history
    ids = counts = NO_TOKENS
    if history is not None:
        ids, counts = history.after(drafted) if drafted else (history.ids, history.counts)
    return Draw(
        params=sequence.sampling,
        seed=sequence.seed,
        position=len(sequence.tokens) + len(drafted),
        choice_index=sequence.choice_index,
        seen_ids=ids,
        answer_counts=counts,
    )


def _as_error(problem: Exception) -> HerdError:
    if isinstance(problem, HerdError):
        return problem
    if isinstance(problem, MemoryError):
        error: HerdError = CapacityError("There was not enough memory for a step. Shorter prompts or a smaller cache need less.")
    else:
        error = HerdError(f"The backend failed unexpectedly ({type(problem).__name__}: {problem}). This is a fault of herd.")
    error.__cause__ = problem
    return error
