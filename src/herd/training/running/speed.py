"""How fast this machine trains, roughly."""

from __future__ import annotations

import time

import torch

PROBE_S = 1.0


def measured_speed() -> float:
    """Floating-point operations a second that training can count on here: half of what plain products of matrices reach."""
    x = torch.randn(1024, 1024)
    x @ x
    count, begin = 0, time.monotonic()
    while (spent := time.monotonic() - begin) < PROBE_S:
        x @ x
        count += 1
    return count * 2 * 1024**3 / spent / 2
