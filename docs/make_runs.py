"""Writes the figures of the real runs into docs/explain/real-runs.md, from the report of each; `--check` only says whether they are stale.

The page marks where: `<!-- run: intents -->` ... `<!-- end of run -->`. Reports lie in docs/runs/, as scripts in examples/ wrote
them (`report.json`, `report.svg`). Nothing between the marks is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent / "explain" / "real-runs.md"
REPORTS = PAGE.parent.parent / "runs"
MARKED = re.compile(r"(<!-- run: (?P<name>[a-z0-9-]+) -->\n).*?(?P<end><!-- end of run -->)", re.DOTALL)


def table(report: dict[str, Any]) -> str:
    """Every figure of a report that has a standard error, a line each, and under it what the run took."""
    lines = ["| | before | after | gain | in standard errors | items |", "|---|---|---|---|---|---|"]
    lines += [line for name, value in report.items() for line in _lines(name.replace("_", " "), value)]
    machine = report["machine"]
    used = f" ({report['processor_minutes']:g} processor minutes)" if "processor_minutes" in report else ""
    took = f"{report['minutes']:g} minutes{used} in all on {machine['cores']} cores ({machine['cpu']}), commit {report['commit']}."
    return "\n".join([*lines, "", f"    {report['command']}", "", took, ""])


def _lines(name: str, value: Any) -> list[str]:
    """The lines of one entry: of a comparison, of a mean, or of several by name."""
    if not isinstance(value, dict):
        return []
    if "gain" in value:
        before, after = (_with_error(value, side) for side in ("before", "after"))
        times = "" if value["gain_in_errors"] is None else f"{value['gain_in_errors']:.1f}"
        return [f"| {name} | {before} | {after} | {value['gain']:.4g} ± {value['gain_error']:.2g} | {times} | {value['items']} |"]
    if "mean" in value and "error" in value:
        return [f"| {name} | | {value['mean']:.4g} ± {value['error']:.2g} | | | {value.get('items', '')} |"]
    return [line for inside, each in value.items() for line in _lines(f"{name}: {inside}", each)]


def _with_error(value: dict[str, Any], side: str) -> str:
    return f"{value[side]:.4g} ± {value[f'{side}_error']:.2g}" if side in value else ""


def renewed(text: str) -> str:
    """A page with what stands between its marks made anew."""

    def made(found: re.Match[str]) -> str:
        report = json.loads((REPORTS / f"{found['name']}.json").read_text(encoding="utf-8"))
        return f"{found[1]}{table(report)}{found['end']}"

    return MARKED.sub(made, text)


def is_stale() -> bool:
    text = PAGE.read_text(encoding="utf-8")
    return renewed(text) != text


def main() -> None:
    if "--check" in sys.argv:
        sys.exit(f"{PAGE} is stale: run docs/make_runs.py" if is_stale() else 0)
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
