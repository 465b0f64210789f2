"""What every benchmark prints: one JSON line per figure, with everything that is needed to judge or repeat it."""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from herd.bench.report import commit, machine

__all__ = ["commit", "figure", "machine", "say", "sha256"]


def sha256(path: Path) -> str:
    """Digest of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def figure(name: str, values: Sequence[float], unit: str, facts: Mapping[str, Any], **more: Any) -> None:
    """Prints one figure: the median of `values`, their range and number, the run's facts, and what else belongs to it
    (`bound`: the physical limit in the same unit and what it is; `share`: the part of it that was reached)."""
    line = {
        "figure": name,
        "value": _rounded(statistics.median(values)),
        "unit": unit,
        "spread": [_rounded(min(values)), _rounded(max(values))],
        "rounds": len(values),
        **more,
        **facts,
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)


def say(text: str) -> None:
    """Progress, for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
