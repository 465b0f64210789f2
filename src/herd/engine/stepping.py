"""One step of all requests together: planned, computed, and what it did for each.

    plan (scheduler) -> draft -> one forward (backend), the lock free -> commit -> Progress of each

If a step of several sequences fails, those that also fail alone have failed; the others do not notice (`forward`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as List
from typing import TYPE_CHECKING

from herd.backends.base import Backend
from herd.engine.constrained import any_held, forced, with_forced, with_masks
from herd.engine.deadlines import Deadlines, Pace
from herd.engine.driving import Driven, tell
from herd.engine.forward import Outcome, Timed, accepted, extended, forward
from herd.engine.parts import Limits, Part
from herd.engine.request import Progress, Purpose, Sequence
from herd.errors import DeadlinePassed, HerdError
from herd.sampling.stop import StopReason

if TYPE_CHECKING:
    from herd.engine.speculative import Speculation


class Stepping(Driven):
    """The books and the backend, moved on a step at a time. `Engine` is made of it."""

    def __init__(
        self,
        backend: Backend,
        limits: Limits,
        context_length: int,
        speculation: Speculation | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(backend, limits, context_length)
        self._timed = Timed(backend)
        self._speculation = speculation
        self._deadlines, self._pace = Deadlines(clock), Pace(clock)
        self.on_start: Callable[[List[Sequence]], None] | None = None
        """Called before a step with the sequences that run for the first time in it; the lock is free."""

    def _advance(self) -> list[Progress] | None:
        """Plans, computes and commits one step; the lock, held on entry and exit, is free while the backend computes.
        None if there is nothing to run."""
        self._driver = threading.get_ident()
        try:
            progress = [self._fail(sequence, _too_late(), keep=True) for sequence in self._deadlines.passed()]
            parts = self._scheduler.plan()
            if not parts:
                return progress or None
            speculation, is_held = self._speculation, any_held(parts)
            if speculation is not None or is_held:
                parts = self._with_room(parts)
            self._in_step = frozenset([part.sequence.number for part in parts])
            fresh = [part.sequence for part in parts if not part.sequence.has_begun]
            self._lock.release()
            try:
                if fresh:
                    self._begin(fresh)
                if speculation is not None:
                    parts, outcomes = speculation.forward(self._timed, parts)
                else:
                    parts = with_masks(parts) if is_held else parts
                    outcomes = forward(self._timed, parts)
            finally:
                self._lock_again()
            for part, outcome in zip(parts, outcomes, strict=True):
                self._commit(part, outcome, progress)
            return progress
        finally:
            self._driver = None
            self._in_step = frozenset()
            self._carry_out()
            self._settle_adapters()
            self._changed.notify_all()

    def _begin(self, fresh: list[Sequence]) -> None:
        for sequence in fresh:
            sequence.has_begun = True
        if self.on_start is not None:
            self.on_start(fresh)

    def _with_room(self, parts: list[Part]) -> list[Part]:
        """The parts with room for what may be drafted, and with what is forced."""
        found = forced(parts)
        speculation = self._speculation
        wanted = [0] * len(parts) if speculation is None else speculation.wanted(parts)
        if not any(wanted) and not any(found):
            return parts
        made = self._scheduler.make_room(parts, [len(tokens) or count for tokens, count in zip(found, wanted, strict=True)])
        return with_forced(made, found)

    def _commit(self, part: Part, outcome: Outcome, progress: list[Progress]) -> None:
        """Adds to `progress` what a part of a step did for its sequence."""
        sequence, choices = part.sequence, outcome.choices
        if len(choices) == 1 and sequence.matcher is None and not part.drafted:  # nearly all of them
            progress.append(tell(sequence, extended(sequence, choices[0])))
            self._scheduler.commit(sequence, part.start + part.count)
        elif outcome.error is not None:
            progress.append(self._fail(sequence, outcome.error))
            return
        elif sequence.purpose is Purpose.SCORES:
            self._scheduler.commit(sequence, part.end)
            if part.num_outputs:
                progress.append(self._commit_rows(sequence, outcome))
            return
        else:
            assert part.draws == bool(choices), "the backend drew where it was asked to"
            made = [tell(sequence, each) for each in accepted(part, choices)]
            num_chosen = len(made) - (1 if made and made[-1].token is None else 0)
            self._scheduler.commit(sequence, part.end + max(0, num_chosen - 1))
            progress += made
        if sequence.stop_reason is not None:
            self._scheduler.finish(sequence)
            self._pace.ended()

    def _commit_rows(self, sequence: Sequence, outcome: Outcome) -> Progress:
        assert outcome.logits_RV is not None
        sequence.scored += len(outcome.logits_RV)
        if sequence.scored == sequence.length:
            sequence.stop_reason = StopReason.END
            self._scheduler.finish(sequence)
        sequence.is_held = sequence.news is not None
        return tell(sequence, Progress(sequence=sequence, logits_RV=outcome.logits_RV, stop_reason=sequence.stop_reason))

    def _fail(self, sequence: Sequence, error: HerdError, *, keep: bool = False) -> Progress:
        """keep: what is in its pages is right, and others may find it."""
        sequence.error = error
        self._scheduler.finish(sequence, keep=keep)
        return tell(sequence, Progress(sequence=sequence, error=error))


def _too_late() -> DeadlinePassed:
    return DeadlinePassed("The time that was given for this answer is over. Allow more time, ask for less, or ask when fewer others do.")
