"""The folder of a run: who may have it, what going on refuses, and what it tells of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from herd.errors import CapacityError, FileProblem, UsageError
from herd.training.running.facts import digest, gathered
from herd.training.running.overview import overview, overviews
from herd.training.running.runs import State, open_run, read_log, saved_settings, state_of
from herd.training.schedules import Schedule
from herd.training.settings.loop import LoopSettings

SETTINGS = LoopSettings(schedule=Schedule(steps=10))


def facts(**data: str) -> dict[str, Any]:
    return {"data": {name: {"bytes": 1, "sha256": value} for name, value in data.items()}, "model": "m", "machine": {}, "version": {}}


def test_a_new_run_writes_down_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "faq.jsonl").write_text("{}\n")
    with open_run(tmp_path / "runs" / "a", SETTINGS, gathered([tmp_path / "faq.jsonl"], "abc", {"recipe": "sft"})) as run:
        run.add(1, {"loss": 2.0, "step_s": 0.5})
        assert state_of(run.folder) is State.RUNNING
    folder = tmp_path / "runs" / "a"
    assert saved_settings(folder, LoopSettings) == SETTINGS
    told = json.loads((folder / "facts.json").read_text())
    assert told["data"] == {str(tmp_path / "faq.jsonl"): digest(tmp_path / "faq.jsonl")} and told["model"] == "abc"
    assert told["machine"]["cores"] and told["version"]["torch"]
    assert list(read_log(folder / "metrics.jsonl")) == [{"step": 1, "loss": 2.0}]
    assert list(read_log(folder / "timings.jsonl")) == [{"step": 1, "step_s": 0.5}]
    assert state_of(folder) is State.INTERRUPTED


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"is not empty: there is 'thesis\.tex' in it"), open_run(tmp_path, SETTINGS, facts()):
        pass
    with pytest.raises(UsageError, match="is a file"), open_run(tmp_path / "thesis.tex", SETTINGS, facts()):
        pass
    with pytest.raises(FileProblem, match="cannot be written"), open_run(tmp_path / "thesis.tex" / "a", SETTINGS, facts()):
        pass


def test_a_folder_that_holds_a_run_is_refused_unless_it_goes_on(tmp_path: Path) -> None:
    with open_run(tmp_path / "a", SETTINGS, facts()):
        pass
    with pytest.raises(UsageError, match=r"holds a run already \(interrupted\)"), open_run(tmp_path / "a", SETTINGS, facts()):
        pass
    with open_run(tmp_path / "a", SETTINGS, facts(), resume=True) as run:
        assert run.is_resumed and run.notes == ()


def test_going_on_where_there_is_no_run_begins_one_and_says_so(tmp_path: Path) -> None:
    with open_run(tmp_path / "typo", SETTINGS, facts(), resume=True) as run:
        assert not run.is_resumed and run.notes == (f"{tmp_path / 'typo'} held no run to go on with, so this one begins",)


@pytest.mark.parametrize("is_there", [False, True])
def test_force_without_a_run_that_goes_on_is_refused_and_leaves_nothing(is_there: bool, tmp_path: Path) -> None:
    if is_there:
        with open_run(tmp_path / "a", SETTINGS, facts()):
            pass
    with pytest.raises(UsageError, match="give it together with --resume"), open_run(tmp_path / "a", SETTINGS, facts(), force=True):
        pass
    assert (tmp_path / "a").exists() == is_there


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT and str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(FileProblem, match=r"cannot be written: Permission denied"), open_run(tmp_path / "a", SETTINGS, facts()):
        pass


def test_a_folder_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom herd.errors import UsageError\n"
        "from herd.training.running.runs import open_run, state_of\n"
        "from herd.training.settings.loop import LoopSettings\n"
        "print(state_of(Path(sys.argv[1])).value)\n"
        "try:\n with open_run(Path(sys.argv[1]), LoopSettings(), {}, resume=True): pass\nexcept UsageError as error: print(error)\n"
    )
    with open_run(tmp_path / "a", SETTINGS, facts()):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], capture_output=True, text=True, timeout=60)
    state, said = done.stdout.splitlines()
    assert state == "running" and f"is being worked on by process {os.getpid()}" in said


def test_going_on_with_other_settings_or_data_lists_what_differs(tmp_path: Path) -> None:
    with open_run(tmp_path / "a", SETTINGS, facts(faq="1", gone="2")):
        pass
    other = LoopSettings(schedule=Schedule(steps=10, lr=0.5), seed=1, save_every=7)
    with (
        pytest.raises(UsageError) as error,
        open_run(tmp_path / "a", other, facts(faq="3", new="4") | {"model": "n"}, resume=True),
    ):
        pass
    for line in (
        "faq: its contents have changed",
        "gone: was used then and is not now",
        "new: is used now and was not then",
        "the model: m then, n now",
        "schedule.lr: 0.001 then, 0.5 now",
        "seed: 0 then, 1 now",
        "--force",
    ):
        assert line in str(error.value)
    assert "save_every" not in str(error.value)
    with open_run(tmp_path / "a", other, facts(faq="3"), resume=True, force=True) as run:
        assert "schedule.lr: 0.001 then, 0.5 now" in run.notes
    assert saved_settings(tmp_path / "a", LoopSettings) == other
    assert "seed: 0 then, 1 now" in json.loads((tmp_path / "a" / "facts.json").read_text())["resumed"][0]["changed"]


def test_how_often_a_run_is_saved_may_change(tmp_path: Path) -> None:
    with open_run(tmp_path / "a", SETTINGS, facts()):
        pass
    with open_run(tmp_path / "a", LoopSettings(schedule=Schedule(steps=10), save_every=3), facts(), resume=True) as run:
        assert run.notes == ()
    assert saved_settings(tmp_path / "a", LoopSettings).save_every == 3


def test_another_machine_is_noted(tmp_path: Path) -> None:
    with open_run(tmp_path / "a", SETTINGS, facts() | {"machine": {"threads": 1}}):
        pass
    with open_run(tmp_path / "a", SETTINGS, facts() | {"machine": {"threads": 2}}, resume=True) as run:
        assert len(run.notes) == 1 and "rounding may differ" in run.notes[0]


def test_a_log_that_was_cut_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path / "a", SETTINGS, facts()) as run, pytest.raises(FileProblem, match="It was changed or cut"):
        run.cut(5, 0)


def test_a_full_disk_is_a_matter_of_capacity(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").symlink_to("/dev/full")
    (tmp_path / "a" / "config.toml").write_text("[schedule]\nsteps = 10\n")
    (tmp_path / "a" / "facts.json").write_text(json.dumps(facts()))
    with open_run(tmp_path / "a", SETTINGS, facts(), resume=True) as run, pytest.raises(CapacityError, match=r"metrics\.jsonl"):
        run.add(1, {"loss": 1.0})


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    with open_run(tmp_path / "a", SETTINGS, facts()) as run:
        run.add(1, {"loss": float("nan"), "gradient": float("inf")})
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == '{"step":1,"loss":null,"gradient":null}\n'


def test_an_overview_tells_step_state_and_figures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with open_run(tmp_path / name, SETTINGS, facts() | {"recipe": "sft"}) as run:
            run.add(0, {"held_out.loss": 9.0})
            for step in range(1, 4):
                run.add(step, {"loss": 1.0 / step, "lr": 0.1})
            run.end(State.STOPPED, 3)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step":4,"lo')
    (tmp_path / "other").mkdir()
    found = overviews(tmp_path)
    assert [each.folder.name for each in found] == ["a", "b"]
    assert (found[1].recipe, found[1].state, found[1].step, found[1].steps) == ("sft", State.STOPPED, 3, 10)
    assert found[1].figures == {"loss": 1 / 3, "lr": 0.1, "held_out.loss": 9.0}
    assert overviews(tmp_path / "absent") == []
    with pytest.raises(UsageError, match="holds no run"):
        overview(tmp_path / "other")
