"""What becomes of a step's logits: choices by native code, a copy for who wants them, and what is said of rows that are not numbers."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from herd import _core
from herd.backends.base import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herd.sampling.draw import Choice, Draw


def choose(chooser: _core.Chooser, plan: Plan, program: _core.Program) -> tuple[tuple[Choice, ...], ...]:
    """What each span draws from its rows of a step's logits, in the order of the plan."""
    rows: list[int] = []
    draws: list[Draw] = []
    end = 0
    for span in plan.spans:
        end += span.num_outputs
        rows.extend(range(end - len(span.draws), end))
        draws.extend(span.draws)
    if not draws:
        return ((),) * len(plan.spans)
    logits_RV = program.logits()
    chosen = chooser.choose(logits_RV, rows, draws)
    all_drawn = (_defined(logits_RV, row, draw) if each is None else each for each, row, draw in zip(chosen, rows, draws, strict=True))
    return tuple(tuple(islice(all_drawn, len(span.draws))) for span in plan.spans)


def not_finite(plan: Plan, row: int) -> str:
    """The message for a row of logits that holds something that is not a number."""
    for span in plan.spans:
        if row < span.num_outputs:
            position = span.start + len(span.tokens) - span.num_outputs + row
            return (
                f"The logits at position {position} hold a value that is not a finite number. Weights that are damaged or too "
                "large for this number format do that: check the file against its published SHA-256."
            )
        row -= span.num_outputs
    raise AssertionError("a row of no span")


# numpy takes longer to load than a small model to answer, so it is loaded where an answer needs it.


def copied(logits_RV: memoryview) -> NDArray[np.float32]:
    """Logits in memory of their own: the next step writes over those of a program."""
    import numpy as np

    return np.array(logits_RV)


def all_finite(scores: NDArray[np.float32]) -> bool:
    """Whether all are numbers."""
    import numpy as np

    return bool(np.isfinite(scores).all())


def _defined(logits_RV: memoryview, row: int, draw: Draw) -> Choice:
    """The numpy definition says what is wrong with a row of which native code can choose nothing."""
    import numpy as np

    from herd.sampling import chain

    return chain.choose(np.asarray(logits_RV)[row], draw)
