"""Pretraining by two processes comes to what one comes to: losses, loads of experts, held-out figures and weights; and goes on exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from herd.training.recipes.pretrain import _apart
from herd.training.running.runs import read_log
from herd.training.student.batches import Document
from training.pretraining_together import make_place, work
from training.programs import run_file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    make_place(folder)
    return folder


def together(place: Path, folder: Path, case: str, count: int = 2) -> None:
    run_file("pretraining_together.py", str(place), str(folder), case, count=count)


def same(one: Path, two: Path) -> None:
    """Every figure of both logs, and every weight."""
    ours, theirs = (list(read_log(each / "metrics.jsonl")) for each in (two, one))
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs] and len(ours) == 9
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-7, abs=1e-9)
    with np.load(one / "learned.npz") as first, np.load(two / "learned.npz") as second:
        assert set(first) == set(second)
        for name in first:
            np.testing.assert_allclose(second[name], first[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_two_processes_with_divided_experts_come_to_what_one_comes_to(place: Path, tmp_path: Path) -> None:
    together(place, tmp_path / "two", "experts-divided")
    work(place, tmp_path / "one", "experts-whole")
    same(tmp_path / "one", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "end.json").read_text())["state"] == "finished"


@pytest.mark.slow  # each case is a pair of processes
@pytest.mark.parametrize("case", ["dense-whole", "dense-divided", "recomputed-divided", "taught-divided"])
def test_two_processes_come_to_what_one_comes_to(place: Path, tmp_path: Path, case: str) -> None:
    if case.startswith("taught"):
        from herd.cli.train_pretrain import write_model
        from herd.training.beginning.pretrain_run import pretrain
        from training.pretraining_together import settings_of

        pretrain(settings_of(place, "dense"), place / "teacher", write_model)
    together(place, tmp_path / "two", case)
    work(place, tmp_path / "one", case)
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow  # three pairs of processes
def test_a_stopped_run_of_two_processes_goes_on_to_the_same_bytes(place: Path, tmp_path: Path) -> None:
    together(place, tmp_path / "whole", "experts-divided")
    together(place, tmp_path / "halves", "experts-divided-stop")
    assert json.loads((tmp_path / "halves" / "end.json").read_text())["state"] == "stopped"
    together(place, tmp_path / "halves", "experts-divided")
    assert (tmp_path / "halves" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    with np.load(tmp_path / "whole" / "learned.npz") as whole, np.load(tmp_path / "halves" / "learned.npz") as halves:
        assert all(np.array_equal(whole[name], halves[name]) for name in whole)


def test_documents_are_parted_into_runs_of_about_equal_length_none_of_them_empty() -> None:
    documents = [Document((1,) * length, (0.0,) * length) for length in (5, 1, 2, 8, 3, 1)]
    for count in (1, 2, 3, 9):
        runs = _apart(documents, count)
        assert [each for run in runs for each in run] == documents and all(runs) and len(runs) <= count
    assert [sum(len(each.tokens) for each in run) for run in _apart(documents, 2)] == [8, 12]
