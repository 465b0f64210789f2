"""What all forms of tuning have in common: what is asked of each, and how its steps are timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LEARNING_RATE = 1e-4
BETA = 0.1
Job = Mapping[str, Any]
Result = dict[str, Any]


def timed(step: Callable[[], float], job: Job) -> Result:
    """Steps before and within the measurement."""
    seconds, losses = [], []
    for _ in range(job["warmup"] + job["steps"]):
        before = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - before)
    return {"seconds": seconds[job["warmup"] :], "losses": losses}


def worth(text: str) -> float:
    """A reward that tells answers apart and costs nothing: the mean of their characters' numbers."""
    return sum(map(ord, text)) / max(1, len(text))


def clocked(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The same call, which notes how long it took."""

    def timed_call(*arguments: Any, **more: Any) -> Any:
        before = time.perf_counter()
        found = call(*arguments, **more)
        seconds.append(time.perf_counter() - before)
        return found

    return timed_call


def drawn(job: Job, tokens: Sequence[float], seconds: Sequence[float]) -> Result:
    """What is told of the answers of the steps that count."""
    assert len(tokens) == len(seconds) == job["warmup"] + job["steps"], "each step draws once"
    return {"answer_tokens": list(tokens[job["warmup"] :]), "drawing_s": list(seconds[job["warmup"] :])}
