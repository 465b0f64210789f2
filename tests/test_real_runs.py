"""The page of real runs and the scripts that make them: figures come from reports, and claims rest on enough items."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORTS = sorted((ROOT / "docs" / "runs").glob("*.json"))


def script(path: str) -> Any:
    """A script of this checkout as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_of_real_runs_has_the_figures_of_their_reports() -> None:
    assert not script("docs/make_runs.py").is_stale(), "run docs/make_runs.py"


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_comparisons_of_a_real_run_rest_on_500_items_and_its_curve_is_kept(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    compared = list(comparisons(report))
    assert compared
    assert all(each["items"] >= 500 for each in compared)
    assert report["minutes"] > 0 and report["command"].startswith("python examples/")
    assert path.with_suffix(".svg").read_text(encoding="utf-8").startswith("<svg")


def comparisons(value: Any) -> Any:
    """All that says what was gained, wherever it is."""
    if isinstance(value, dict):
        if "gain" in value:
            yield value
        for each in value.values():
            yield from comparisons(each)


def test_a_gain_is_taken_item_by_item() -> None:
    found = script("examples/measuring.py").compared([0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    assert (found["before"], found["after"], found["gain"]) == (0.25, 0.75, 0.5)
    assert math.isclose(found["gain_error"], math.sqrt((4 * 0.25 / 3) / 4))
    assert math.isclose(found["gain_in_errors"], 0.5 / found["gain_error"])


def test_a_chart_has_a_line_and_a_name_for_each(tmp_path: Path) -> None:
    charts = script("examples/charts.py")
    path = charts.chart(tmp_path / "a.svg", "T < U", "steps", "loss", {"one": [(0, 1.0), (1, 0.5)], "two": [(0, 2.0), (1, 0.25)]})
    text = path.read_text(encoding="utf-8")
    assert text.count("<polyline") == 2 and ">two</text>" in text and "T &lt; U" in text
    assert charts.smoothed([(0, 1.0), (1, 3.0), (2, 5.0)], 2) == [(0, 1.0), (1, 2.0), (2, 4.0)]


def test_what_earlier_parts_of_a_run_took_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = script("examples/measuring.py")
    monkeypatch.setattr(measuring, "KEPT_S", 1e6)
    run = tmp_path / "run"
    kept = tmp_path / "run-spent.json"
    kept.write_text('{"clock": 600.0, "processors": 900.0}', encoding="utf-8")
    anew = measuring.Spent(run).seconds()
    assert anew["clock"] < 600 and anew["processors"] < 900, "the folder of the run is not there: it begins"
    run.mkdir()
    kept.write_text('{"clock": 600.0, "processors": 900.0}', encoding="utf-8")
    gone_on = measuring.Spent(run).seconds()
    assert 600 < gone_on["clock"] < 700 and 900 < gone_on["processors"] < 1800
    measuring.report(run, measuring.Spent(run), {})
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["minutes"] >= 10 and report["processor_minutes"] >= 15


def test_a_part_of_a_run_that_is_killed_has_left_what_it_took(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    program = (
        "import json, os, sys\nfrom pathlib import Path\nsys.path.insert(0, 'examples')\nimport measuring\nmeasuring.KEPT_S = 0.01\n"
        "run = Path(sys.argv[1])\nnote = run.with_name('run-spent.json')\nspent = measuring.Spent(run)\n"
        "while not note.is_file() or min(json.loads(note.read_text()).values()) < 0.2:\n    pass\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], cwd=ROOT, check=False, timeout=60)
    kept = json.loads((tmp_path / "run-spent.json").read_text(encoding="utf-8"))
    assert kept["clock"] > 0.1 and kept["processors"] > 0.1


def test_a_note_that_cannot_be_written_is_said_once_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "run-spent.json").mkdir()
    program = (
        "import sys, time\nfrom pathlib import Path\nsys.path.insert(0, 'examples')\nimport measuring\nmeasuring.KEPT_S = 0.01\n"
        "run = Path(sys.argv[1])\nnote = run.with_name('run-spent.json')\nmeasuring.Spent(run)\ntime.sleep(0.3)\nnote.rmdir()\n"
        "until = time.monotonic() + 60\nwhile not note.is_file() and time.monotonic() < until:\n    time.sleep(0.01)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads((tmp_path / "run-spent.json").read_text(encoding="utf-8"))["clock"] > 0.2
    (line,) = ended.stderr.splitlines()
    assert "run-spent.json: what the run takes could not be noted" in line
