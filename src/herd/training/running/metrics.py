"""What is measured while a run goes on: time, tokens, memory."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from herd.errors import UsageError

STEPS = 20
"""Speed is the median over so many of the last steps."""


class Meter:
    """Times steps."""

    def __init__(self) -> None:
        self._began = 0.0
        self._seconds: deque[float] = deque(maxlen=STEPS)
        self._tokens: deque[float] = deque(maxlen=STEPS)

    def begin(self) -> None:
        self._began = time.perf_counter()

    def end(self, tokens: float) -> dict[str, float]:
        """After a step of so many tokens: its figures, as they are logged."""
        seconds = time.perf_counter() - self._began
        self._seconds.append(seconds)
        self._tokens.append(tokens)
        return {"step_s": seconds, "tokens_per_s": tokens / seconds, "peak_bytes": peak_bytes()}

    @property
    def tokens_per_s(self) -> float:
        total = sum(self._seconds)
        return sum(self._tokens) / total if total else 0.0

    def left_s(self, steps: int) -> float | None:
        """Seconds that so many steps will take; None until three are known."""
        return statistics.median(self._seconds) * steps if len(self._seconds) >= 3 else None


class Board:
    """The same figures for TensorBoard. `UsageError` if it is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as problem:
            raise UsageError("Curves for TensorBoard need the package tensorboard: pip install tensorboard.") from problem
        # What an earlier process wrote after `step`, and this one computes again, is not shown twice.
        made: Any = SummaryWriter
        self._writer = made(str(folder), purge_step=step + 1)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name.replace(".", "/"), value, step)

    def close(self) -> None:
        self._writer.close()


def peak_bytes() -> int:
    """The most memory so far: the GPU's where one is used, else this process's."""
    if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        return used
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
