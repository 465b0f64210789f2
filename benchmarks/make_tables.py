"""Writes the newest results into the pages of docs/ that show figures; `--check` only says whether they are stale.

A page marks where: `<!-- results: versus-llama-cpp -->` ... `<!-- end of results -->`. Nothing between is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- results: (?P<name>[a-z0-9-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def newest(name: str) -> Path | None:
    """Results are named by date, so the last name is the newest."""
    return max(RESULTS.glob(f"*-{name}.json"), default=None)


def table(path: Path) -> str:
    """One results file as a table, and under it what was measured on what."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = ["| figure | engine | value | spread | bound | share of it |", "|---|---|---|---|---|---|"]
    for line in lines:
        low, high = line["spread"]
        bound = f"{line['bound']['value']} ({line['bound']['what']})" if "bound" in line else ""
        share = f"{line['share']:.0%}" if "share" in line else ""
        measured = f"{line['value']} {line['unit']} | {low} to {high}"
        rows.append(f"| {line['figure']} | {line.get('engine', '')} | {measured} | {bound} | {share} |")
    facts = lines[0]
    versions = ", ".join(f"{engine}: {version}" for engine, version in facts["versions"].items())
    return "\n".join(
        [
            *rows,
            "",
            f"{path.name}: {facts['machine']['cpu']}, {facts['threads']} threads; {facts['model']} ({facts['model_mb']} MB, "
            f"sha256 {facts['model_sha256'][:12]}); commit {facts['commit']}; {versions}. Medians of {facts['rounds'] - 1} or more rounds.",
            "",
        ]
    )


def renewed(text: str) -> str:
    """A page with every marked place filled from the newest results of that name."""

    def fill(match: re.Match[str]) -> str:
        path = newest(match["name"])
        body = table(path) if path is not None else "No results are kept yet; `scripts/bench` makes them.\n"
        return f"{match[1]}{body}{match[3]}"

    return MARKED.sub(fill, text)


def stale() -> list[Path]:
    """Pages whose figures are not those of the newest results."""
    return [page for page in pages() if renewed(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if found := stale():
            raise SystemExit(f"stale figures in {', '.join(str(page.relative_to(ROOT)) for page in found)}; run benchmarks/make_tables.py")
        return
    for page in stale():
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"renewed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
