"""What was measured, as figures: median, spread, bound and share of it, and the ratio to each peer in the same rounds.

As JSON every figure is an object of its own with everything that is needed to judge or repeat it; `benchmarks/results/` keeps them,
one a line, and the tables in the docs are made from them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.bench.bounds import Bounds
from herd.bench.tasks import Question, Seen
from herd.files import atomic_write

OURS = "herd"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. `engine` is empty for limits; `bound` in the same unit, with what it is made of; `share` of it that was
    reached; `unit` "ratio" for a comparison of two engines in the same rounds."""

    name: str
    engine: str
    values: tuple[float, ...]
    unit: str
    bound: float | None = None
    bound_of: str = ""
    question: Question | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def share(self) -> float | None:
        """How much of the bound was reached: 1 is all of it."""
        if self.bound is None:
            return None
        return self.value / self.bound if self.unit != "s" else self.bound / self.value

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = {"figure": self.name, "value": _rounded(self.value), "unit": self.unit}
        found |= {"spread": [_rounded(min(self.values)), _rounded(max(self.values))], "rounds": len(self.values)}
        if self.engine:
            found["engine"] = self.engine
        if self.bound is not None and self.share is not None:
            found |= {"bound": {"value": _rounded(self.bound), "what": self.bound_of}, "share": round(self.share, 3)}
        return found


LIMIT_UNITS = {"read bandwidth": "bytes/s"}


def figures_of(seen: Seen, bounds: Bounds | None) -> list[Figure]:
    """The limits, then each question with all engines, and herd's ratio to each peer."""
    found = [Figure(name, "", tuple(values), LIMIT_UNITS.get(name, "operations/s")) for name, values in seen.limits.items()]
    limits = {name: statistics.median(values) for name, values in seen.limits.items()}
    for question, by_engine in seen.values.items():
        bound = bounds.of(question, limits) if bounds is not None else None
        least = None
        if bound is not None:
            least = bound.seconds if question.unit == "s" else question.tokens * question.sequences / bound.seconds
        for engine, values in by_engine.items():
            what = bound.what if bound is not None else ""
            found.append(Figure(question.title, engine, tuple(values), question.unit, least, what, question))
        found += _ratios(question, by_engine)
    return found + list(_step_costs(seen))


def _ratios(question: Question, by_engine: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    """How many times faster (or, of bytes, larger) herd is, round by round."""
    ours = by_engine.get(OURS, ())
    for engine, theirs in by_engine.items():
        if engine == OURS or len(ours) != len(theirs):
            continue
        pairs = zip(ours, theirs, strict=True)
        ratios = tuple(mine / other if question.unit != "s" else other / mine for mine, other in pairs)
        yield Figure(question.title, f"{OURS} / {engine}", ratios, "ratio", question=question)


def _step_costs(seen: Seen) -> Iterator[Figure]:
    """What steps of several tokens cost against one of one token, of each engine by itself."""
    steps = {question.tokens: by_engine for question, by_engine in seen.values.items() if question.group == "steps"}
    for count, by_engine in steps.items():
        for engine, values in by_engine.items():
            if count > 1:
                ratios = tuple(many / one for many, one in zip(values, steps[1][engine], strict=True))
                yield Figure(f"cost of {count} tokens against 1", engine, ratios, "ratio")


def machine() -> dict[str, Any]:
    """The processor, as it names itself, its cores for this process, and memory."""
    found: dict[str, Any] = {"cpu": _cpu_name(), "architecture": platform.machine(), "system": f"{platform.system()} {platform.release()}"}
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return found | {"python": platform.python_version()}


def commit() -> str | None:
    """The commit that was measured, with `+changes` when the sources differ from it; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        name = git("rev-parse", "--short=12", "HEAD")
        return f"{name}+changes" if git("status", "--porcelain", "--", "src", "csrc", "examples", "CMakeLists.txt") else name
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def write_lines(path: Path, figures: Sequence[Figure], facts: Mapping[str, Any]) -> None:
    """One JSON object a line, each with all facts, over a file of that name."""
    lines = [json.dumps({**figure.data(), **facts}, ensure_ascii=False) for figure in figures]
    with atomic_write(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def rows_of(figures: Sequence[Figure]) -> list[list[str]]:
    """A table: what, engine, value, spread, bound, share of it."""
    rows = []
    for figure in figures:
        low, high = min(figure.values), max(figure.values)
        spread = "" if len(figure.values) < 2 else f"{shown(low, figure.unit)} to {shown(high, figure.unit)}"
        bound = "" if figure.bound is None else f"{shown(figure.bound, figure.unit)} ({figure.bound_of})"
        share = "" if figure.share is None else f"{figure.share:.0%}"
        rows.append([figure.name, figure.engine, shown(figure.value, figure.unit), spread, bound, share])
    return rows


def shown(value: float, unit: str) -> str:
    """A value for people."""
    match unit:
        case "tokens/s":
            return f"{value:,.0f}/s" if value >= 100 else f"{value:.1f}/s"
        case "s" if value < 1e-4:
            return f"{value * 1e6:.1f} µs"
        case "s":
            return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
        case "bytes":
            return f"{value / 1e6:,.0f} MB"
        case "bytes/s":
            return f"{value / 1e9:.1f} GB/s"
        case "operations/s":
            return f"{value / 1e9:,.0f} GOPS"
    return f"{value:.2f}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
