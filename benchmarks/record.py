"""What every benchmark prints: one JSON line per figure, with everything that is needed to judge or repeat it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """The processor, as it names itself, its logical cores and memory."""
    return {
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that was measured; `+changes` when the tree differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    name = git("rev-parse", "--short=12", "HEAD")
    return f"{name}+changes" if git("status", "--porcelain", "--", "src", "csrc", "CMakeLists.txt") else name


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


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")
