"""Curves of a run: as SVG, as dots in a terminal, and the commands that show them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from herd.cli.main import main
from herd.errors import FileProblem
from herd.training.running.curves import draw, in_dots, panels, series_of, smoothed, svg, write_svg
from herd.training.running.runs import State, open_run
from herd.training.schedules import Schedule
from herd.training.settings.loop import LoopSettings


def made(folder: Path, steps: int = 40) -> Path:
    with open_run(folder, LoopSettings(schedule=Schedule(steps=steps)), {"recipe": "sft", "data": {}}) as run:
        run.add(0, {"held_out.loss": 3.0})
        for step in range(1, steps + 1):
            run.add(step, {"loss": math.nan if step == 7 else 3.0 / step, "gradient": 1.0, "tokens": 8, "step_s": 0.1})
        run.add(steps, {"held_out.loss": 0.5})
        run.end(State.STOPPED, steps)
    return folder


def test_a_figure_and_its_evaluation_share_a_panel_and_the_loss_is_first(tmp_path: Path) -> None:
    found = panels(series_of(made(tmp_path / "a")))
    assert [name for name, _, _ in found] == ["loss", "gradient", "step_s"]
    assert found[0][2] == [(0, 3.0), (40, 0.5)] and len(found[0][1]) == 39


def test_curves_are_drawn_as_svg_that_is_xml(tmp_path: Path) -> None:
    text = write_svg(made(tmp_path / "a<b&c", steps=400)).read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg") and "a&lt;b&amp;c" in text
    assert text.count("<circle") == 2 and len(text) < 200_000


def test_a_run_without_a_log_has_no_curves(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no log yet"):
        write_svg(tmp_path)
    assert draw(tmp_path) is None, "a run that was stopped before its first line"


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [math.inf, 1.0], [-1e9, 1e9], [1e-12, 2e-12]])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    points = list(enumerate(value for value in values if math.isfinite(value)))
    ElementTree.fromstring(svg("x", {"loss": points}))
    lines = in_dots("loss", points, [], width=40, height=6).splitlines()
    assert len(lines) == 9 and all(len(line) <= 52 for line in lines)


def test_a_falling_curve_falls_in_dots() -> None:
    lines = in_dots("loss", [(step, -float(step)) for step in range(100)], [(99, -99.0)], width=40, height=8).splitlines()[1:9]
    firsts = [len(line[11:]) - len(line[11:].lstrip()) for line in lines]
    assert firsts == sorted(firsts) and "o" in lines[-1]


def test_smoothing_keeps_a_constant_and_the_first_value() -> None:
    assert [value for _, value in smoothed([(step, 2.0) for step in range(100)])] == pytest.approx([2.0] * 100)
    assert smoothed([(1, 5.0)]) == [(1, 5.0)]


def test_tune_list_shows_runs_and_their_states(tmp_path: Path) -> None:
    made(tmp_path / "runs" / "a")
    done = CliRunner().invoke(main, ["tune", "list", str(tmp_path / "runs")])
    assert done.exit_code == 0 and done.output.splitlines()[1].split() == ["a", "sft", "stopped", "40/40", "0.0750", "0.5000"]
    found = json.loads(CliRunner().invoke(main, ["tune", "list", "--json", str(tmp_path / "runs")]).output)
    assert found["runs"][0]["state"] == "stopped" and found["runs"][0]["figures"]["held_out.loss"] == 0.5
    assert "no runs in" in CliRunner().invoke(main, ["tune", "list", str(tmp_path / "none")]).output


def test_tune_show_tells_and_draws_a_run(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    done = CliRunner().invoke(main, ["tune", "show", str(folder), "--figure", "gradient", "--svg"])
    assert done.exit_code == 0, done.output
    assert "(sft): stopped, step 40 of 40" in done.output and "with --resume, goes on" in done.output
    assert "\ngradient\n" in done.output and "\nloss   o held out" not in done.output and (folder / "curves.svg").is_file()
    found = json.loads(CliRunner().invoke(main, ["tune", "show", str(folder), "--json"]).output)
    assert found["curves"]["loss"]["held_out"] == [[0, 3.0], [40, 0.5]]


@pytest.mark.parametrize(("words", "complaint"), [(["--figure", "los"], "did you mean 'loss'?"), (["../none"], "holds no run")])
def test_tune_show_refuses_by_name(words: list[str], complaint: str, tmp_path: Path) -> None:
    folder = str(made(tmp_path / "a"))
    done = CliRunner().invoke(main, ["tune", "show", *([folder, *words] if words[0].startswith("-") else words)])
    assert done.exit_code == 2 and complaint in done.output
