"""Writes the newest results into the pages of docs/ that show figures; `--check` only says whether they are stale.

A page marks where: `<!-- results: smollm2 -->` ... `<!-- end of results -->`, or `<!-- summary: smollm2 -->` for a line a task with the
engines side by side, or `<!-- ratios: block-formats -->` for such lines with the mean of one over the other and its standard error. Nothing
between is written by hand. `<!-- forms: tuning -->` has a line for each way of tuning that `tuning.py` compared.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(
    r"(<!-- (?P<kind>results|summary|ratios|forms): (?P<name>[a-z0-9._-]+) -->\n).*?(?P<end><!-- end of results -->)", re.DOTALL
)
RATES = {"tokens_per_s": "tokens/s", "pairs_per_s": "pairs/s", "completions_per_s": "answers/s"}
READABLE = {"bytes/s": ("GB/s", 1e9), "operations/s": ("GOPS", 1e9), "bytes": ("MB", 1e6)}


def newest(name: str) -> Path | None:
    """Results are named by date, so the last name is the newest."""
    return max(RESULTS.glob(f"*-{name}.json"), default=None)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def table(path: Path) -> str:
    """One results file as a table, and under it what was measured on what."""
    lines = lines_of(path)
    beside = any("beside" in line for line in lines)
    more = " beside | times | cost |" if beside else ""
    rows = [f"| figure | engine | value | spread | bound | share of it |{more}", f"|---|---|---|---|---|---|{'---|' * 3 if beside else ''}"]
    for line in lines:
        unit, scale = readable(line)
        bound = f"{shown(line['bound']['value'] / scale)} ({line['bound']['what']})" if "bound" in line else ""
        share = f"{line['share']:.0%}" if "share" in line else ""
        value = f"{shown(line['value'] / scale)} {unit}"
        cells = beside_of(line) if beside else ""
        rows.append(f"| {line['figure']} | {line.get('engine', '')} | {value} | {spread_of(line)} | {bound} | {share} |{cells}")
    return "\n".join([*rows, "", facts_of(path, lines), ""])


def spread_of(line: dict[str, Any]) -> str:
    """The range of all rounds; of what was measured once, its standard error where that is known."""
    _, scale = readable(line)
    if line["rounds"] == 1 and "error" in line:
        return f"± {shown(line['error'] / scale)}"
    return " to ".join(shown(value / scale) for value in line["spread"])


def beside_of(line: dict[str, Any]) -> str:
    """What another engine did, how many times that herd does, and what a step costs against one token, here and there."""
    other = f"{shown(line['beside']['value'])} ({line['beside']['engine']})" if "beside" in line else ""
    costs = " against ".join(str(line[key]) for key in ("cost", "cost_beside") if key in line)
    return f" {other} | {line.get('ratio', '')} | {costs} |"


def summary(path: Path) -> str:
    """One line for each task, the engines side by side, and how much of the bound herd reaches."""
    lines = [line for line in lines_of(path) if line.get("engine") and line["unit"] != "ratio"]
    engines = list(dict.fromkeys(line["engine"] for line in lines))
    tasks: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        tasks.setdefault(line["figure"], {})[line["engine"]] = line
    has_bounds = any("share" in line for line in lines)
    rows = [f"| | {' | '.join(engines)} |", f"|---|{'---|' * len(engines)}"]
    if has_bounds:
        rows = [f"{rows[0]} herd's share of the bound |", f"{rows[1]}---|"]
    for task, by_engine in tasks.items():
        if len(by_engine) < min(2, len(engines)):
            continue  # nothing to set beside it
        cells = []
        for engine in engines:
            line = by_engine.get(engine)
            cells.append("" if line is None else f"{shown(line['value'] / readable(line)[1])} {readable(line)[0]}")
        share = f"{by_engine['herd']['share']:.0%}" if "share" in by_engine.get("herd", {}) else ""
        rows.append(f"| {task} | {' | '.join(cells)} |" + (f" {share} |" if has_bounds else ""))
    return "\n".join([*rows, "", facts_of(path, lines), ""])


def ratios(path: Path) -> str:
    """One line for each task that has a ratio of engines: the mean of each, and theirs with its standard error."""
    lines = lines_of(path)
    engines = list(dict.fromkeys(line["engine"] for line in lines))
    rows = [f"| | {' | '.join(engines)} |", f"|---|{'---|' * len(engines)}"]
    for task in dict.fromkeys(line["figure"] for line in lines):
        of_task = {line["engine"]: line for line in lines if line["figure"] == task}
        rows.append(f"| {task} | {' | '.join(mean_of(of_task[engine]) if engine in of_task else '' for engine in engines)} |")
    return "\n".join([*rows, "", facts_of(path, lines, "Means of {} or more models"), ""])


def forms(path: Path) -> str:
    """Ways of tuning side by side: a line a form; methods that are measured by different rates are told apart by their unit."""
    lines = lines_of(path)
    rows = ["| form | rate | a step | most memory | of this machine's peak | herd is faster by |", "|---|---|---|---|---|---|"]
    for line in lines:
        faster = {
            form: figures["times_as_fast"] for key, beside in line.items() if key.endswith("_beside") for form, figures in beside.items()
        }
        for form, found in line["forms"].items():
            rate = next(f"{shown(found[key])} {unit}" for key, unit in RATES.items() if key in found)
            share = f"{found['of_peak']:.0%} ({found['dtype']})" if "of_peak" in found else found["dtype"]
            times = f"{faster[form]}" if form in faster and not form.startswith("herd") else ""
            rows.append(f"| {form} | {rate} | {shown(found['s_per_step'])} s | {found['peak_gib']} GiB | {share} | {times} |")
    return "\n".join([*rows, "", *dict.fromkeys(tuning_facts(path, line) for line in lines), ""])


def tuning_facts(path: Path, line: dict[str, Any]) -> str:
    settings = line["settings"]
    peaks = ", ".join(f"{dtype} {shown(value)}" for dtype, value in line["peak_gflops"].items())
    lengths = f"{len(line['lengths'])} documents of {min(line['lengths'])} to {max(line['lengths'])} tokens ({line['data']})"
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    steps = f"medians of {settings['rounds'] * settings['steps']} steps after {settings['warmup']}"
    where = f"{line['machine']['cpu']}, {settings['threads']} threads (peaks in GFLOPS: {peaks})"
    what = f"{line['model']}, {lengths}, LoRA of rank {settings['rank']}"
    return f"{path.name}: {where}; {what}; commit {line['commit']}; {versions}; {steps}."


def mean_of(line: dict[str, Any]) -> str:
    """The mean with its standard error, and the perplexity where there is one."""
    error = f"{line['error']:.2g}" if line["unit"] == "ratio" else f"{line['error'] / line['mean']:.0%}"
    perplexity = f" ({line['perplexity']:.2f})" if "perplexity" in line else ""
    return f"{shown(line['mean'])} ± {error}{perplexity}"


def readable(line: dict[str, Any]) -> tuple[str, float]:
    """The unit that people read a figure in, and how many of the figure's own it is."""
    unit: str = line["unit"]
    return ("ms", 1e-3) if unit == "s" and line["value"] < 1 else READABLE.get(unit, (unit, 1))


def shown(value: float) -> str:
    """Four digits, and no power of ten."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def facts_of(path: Path, lines: list[dict[str, Any]], counted: str = "Medians of {} or more rounds") -> str:
    """What was measured on what, as a sentence."""
    facts = lines[0]
    versions = ", ".join(f"{engine}: {version}" for engine, version in facts.get("versions", {}).items())
    versions = f"; {versions}" if versions else ""
    digest = f", sha256 {facts['model_sha256'][:12]}" if facts.get("model_sha256") else ""
    models = "; ".join(dict.fromkeys(line["model"] for line in lines))
    size = f" ({facts['model_mb']} MB{digest})" if "model_mb" in facts and len({line["model"] for line in lines}) == 1 else ""
    repeated = [line["rounds"] for line in lines if line["rounds"] > 1]
    others = "" if len(repeated) == len(lines) else ", or of one where it is measured once"
    medians = f" {counted.format(min(repeated))}{others}." if repeated else ""
    commits = ", ".join(dict.fromkeys(str(line["commit"]) for line in lines))
    return f"{path.name}: {facts['machine']['cpu']}, {facts['threads']} threads; {models}{size}; commit {commits}{versions}.{medians}"


def renewed(text: str) -> str:
    """A page with every marked place filled from the newest results of that name."""

    def fill(match: re.Match[str]) -> str:
        path = newest(match["name"])
        make = {"results": table, "summary": summary, "ratios": ratios, "forms": forms}[match["kind"]]
        body = make(path) if path is not None else "No results are kept yet; `scripts/bench` makes them.\n"
        return f"{match[1]}{body}{match['end']}"

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
