"""The loop: guards, evaluations, what is kept, signals; that a resumed run is exact is in test_faults.py."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
import torch

from herd.checkpoints.safetensors import read_safetensors
from herd.errors import FileProblem, UsageError
from herd.files import MappedFile
from herd.training import gradients
from herd.training.running.loop import End, Told, silent, train
from herd.training.running.optim import make_optimiser
from herd.training.running.runs import State, open_run, read_log, state_of
from herd.training.running.saving import complete, newest, save
from herd.training.schedules import Schedule
from herd.training.settings.loop import LoopSettings
from training.faults import FACTS, KINDS, MUON, SETTINGS, STEPS, Lines, result

TINY = LoopSettings(schedule=Schedule(lr=0.05, steps=6), save_minutes=0)


def trained(folder: Path, settings: LoopSettings = TINY, recipe: Lines | None = None, told: Callable[[Told], None] = silent) -> End:
    with open_run(folder, settings, FACTS, resume=(folder / "config.toml").exists()) as run:
        return train(recipe or Lines(), run, settings, make_optimiser(MUON, KINDS), told)


def test_every_step_and_evaluation_is_logged_and_told(tmp_path: Path) -> None:
    seen: list[Told] = []
    assert trained(tmp_path / "a", replace(TINY, evaluate_every=4), told=seen.append) is End.FINISHED
    lines = list(read_log(tmp_path / "a" / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 4, 5, 6, 6]
    assert [line["step"] for line in lines if "held_out.loss" in line] == [0, 4, 6]
    assert set(lines[1]) == {"step", "loss", "tokens", "mean", "gradient", "lr"}
    assert set(next(read_log(tmp_path / "a" / "timings.jsonl"))) == {"step", "step_s", "tokens_per_s", "peak_bytes"}
    assert [(told.step, told.is_evaluation) for told in seen][:3] == [(0, True), (1, False), (2, False)]
    assert seen[-1].left_s == 0 and seen[-1].tokens_per_s > 0 and seen[-1].peak_bytes > 0
    assert state_of(tmp_path / "a") is State.FINISHED and (tmp_path / "a" / "curves.svg").is_file()


def test_gradients_are_clipped_as_torch_does() -> None:
    ours, theirs = (
        {name: torch.nn.Parameter(torch.zeros(3, 4)) for name in "ab"},
        {name: torch.nn.Parameter(torch.zeros(3, 4)) for name in "ab"},
    )
    for name in "ab":
        ours[name].grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(ord(name)))
        theirs[name].grad = ours[name].grad.clone()  # type: ignore[union-attr]
    length = gradients.norm(ours)
    gradients.clip(ours, length, 0.5)
    assert length == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)), rel=1e-6)
    for name in "ab":
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)


def test_a_bad_step_is_left_out_and_its_batch_is_kept(tmp_path: Path) -> None:
    notes: list[str] = []
    recipe = Lines(bad=(2,))
    assert trained(tmp_path / "a", recipe=recipe, told=lambda told: notes.append(told.note)) is End.FINISHED
    lines = list(read_log(tmp_path / "a" / "metrics.jsonl"))
    assert [line.get("bad", 0) for line in lines] == [0, 0, 1, 0, 0, 0] and lines[2]["loss"] is None
    about = json.loads((tmp_path / "a" / "bad" / "step-000003" / "about.json").read_text())
    assert about["parameters"] == ["matrix", "bias"] and about["batch"] == {"source": "points of step 2"}
    assert set(read_safetensors(MappedFile(tmp_path / "a" / "bad" / "step-000003" / "batch.safetensors"))) == {"x", "y"}
    assert any("Step 3: loss nan" in note for note in notes)
    assert all(bool(torch.isfinite(each).all()) for each in recipe.parameters.values())


def test_too_many_bad_steps_in_a_row_end_the_run_with_the_last_good_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"at 3 steps in a row \(3 to 5\); 2 are allowed"):
        trained(tmp_path / "a", replace(TINY, max_bad_steps=2), Lines(bad=(2, 3, 4)))
    assert state_of(tmp_path / "a") is State.FAILED
    assert json.loads((tmp_path / "a" / "end.json").read_text())["why"].startswith("UsageError: The loss or the gradient")
    whole = Lines()
    trained(tmp_path / "b", replace(TINY, schedule=TINY.schedule), whole)
    found = newest(tmp_path / "a" / "checkpoints")
    assert found is not None and found[0].step == 5 and bool(torch.isfinite(found[1]["weights"]["matrix"]).all())


def test_runs_with_nothing_to_learn_are_refused(tmp_path: Path) -> None:
    frozen = Lines()
    for parameter in frozen.parameters.values():
        parameter.requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter takes a gradient"):
        trained(tmp_path / "a", recipe=frozen)

    class Empty(Lines):
        def step(self, number: int) -> dict[str, float]:
            return {"loss": 0.0, "tokens": 0}

    with pytest.raises(UsageError, match="0 tokens that carry loss"):
        trained(tmp_path / "b", recipe=Empty())


def test_a_step_without_tokens_changes_nothing(tmp_path: Path) -> None:
    class Rests(Lines):
        def step(self, number: int) -> dict[str, float]:
            return super().step(number) if number < 3 else {"loss": 0.0, "tokens": 0}

    three, six = Rests(), Rests()
    trained(tmp_path / "a", LoopSettings(schedule=Schedule(name="constant", lr=0.05, steps=3), save_minutes=0), three)
    trained(tmp_path / "b", LoopSettings(schedule=Schedule(name="constant", lr=0.05, steps=6), save_minutes=0), six)
    torch.testing.assert_close(three.parameters["matrix"], six.parameters["matrix"], rtol=0, atol=0)


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    class Known(Lines):
        def evaluate(self, number: int) -> dict[str, float]:
            return {"loss": {0: 0.1, 2: 0.5, 4: 0.9, 6: 0.7}.get(number, 1.0), "right": number}

    settings = replace(TINY, evaluate_every=2, save_every=1, keep_last=2, keep_best=True)
    trained(tmp_path / "a", settings, Known())
    assert [saved.step for saved in complete(tmp_path / "a" / "checkpoints")] == [2, 5, 6]
    trained(tmp_path / "b", replace(settings, best="-right", save_every=0, keep_last=1), Known())
    assert [saved.step for saved in complete(tmp_path / "b" / "checkpoints")] == [6]
    with pytest.raises(UsageError, match="best is 'wrong', and an evaluation has loss, right"):
        trained(tmp_path / "c", replace(settings, best="wrong"), Known())


def test_a_checkpoint_is_made_after_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 10_000, 25))
    monkeypatch.setattr("herd.training.running.loop.time.monotonic", lambda: next(seconds))
    made: list[int] = []
    monkeypatch.setattr("herd.training.running.loop.save", lambda root, step, *rest: made.append(step))
    trained(tmp_path / "a", replace(TINY, save_minutes=1))
    assert made == [3, 6] or made == [2, 4, 6]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_saves_and_the_run_goes_on_exactly(number: signal.Signals, tmp_path: Path) -> None:
    notes: list[str] = []

    def told(seen: Told) -> None:
        notes.append(seen.note)
        if seen.step == 5 and not seen.is_evaluation and not seen.note:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    assert trained(tmp_path / "a", SETTINGS, told=told) is End.STOPPED
    assert signal.getsignal(number) is before
    assert state_of(tmp_path / "a") is State.STOPPED
    assert notes[-1] == f"{number.name}: step 5 of {STEPS} is saved; go on with --resume."
    assert trained(tmp_path / "a", SETTINGS) is End.FINISHED
    assert trained(tmp_path / "b", SETTINGS) is End.FINISHED
    assert result(tmp_path / "a") == result(tmp_path / "b")


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    class Slow(Lines):
        def step(self, number: int) -> dict[str, float]:
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().step(number)

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a", recipe=Slow())
    assert state_of(tmp_path / "a") is State.INTERRUPTED


def test_going_on_after_the_end_changes_nothing(tmp_path: Path) -> None:
    trained(tmp_path / "a", SETTINGS)
    before = result(tmp_path / "a")
    assert trained(tmp_path / "a", SETTINGS) is End.FINISHED
    assert result(tmp_path / "a") == before and state_of(tmp_path / "a") is State.FINISHED


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    trained(tmp_path / "a", SETTINGS)
    expected = result(tmp_path / "a")
    weights = sorted((tmp_path / "a" / "checkpoints").iterdir())[-1] / "weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    notes: list[str] = []
    trained(tmp_path / "a", SETTINGS, told=lambda told: notes.append(told.note))
    assert "is not what was written; the checkpoint is damaged. Going on from step" in notes[0]
    assert result(tmp_path / "a") == expected


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    with pytest.raises(FileProblem, match=r"matrix is torch\.float32 \[6, 6\]; this run trains torch\.float32 \[7, 7\]"):
        trained(tmp_path / "a", recipe=Lines(width=7))
    other = Lines()
    other.parameters["extra"] = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(FileProblem, match="has other weights than this run trains, extra among them"):
        trained(tmp_path / "a", recipe=other)


@pytest.mark.parametrize("change", ["cut", "text", "format", "step", "path", "gone"])
def test_a_folder_that_is_no_whole_checkpoint_does_not_count(change: str, tmp_path: Path) -> None:
    save(tmp_path, 1, {"weights": {"a": torch.zeros(3)}}, {})
    save(tmp_path, 2, {"weights": {"a": torch.ones(3), "b": torch.zeros(0), "c": torch.tensor(True)}}, {"x": 1})
    assert [saved.step for saved in complete(tmp_path)] == [1, 2]
    made = complete(tmp_path)[-1]
    manifest: dict[str, Any] = json.loads((made.folder / "manifest.json").read_text())
    match change:
        case "cut":
            os.truncate(made.folder / "weights.safetensors", 20)
        case "text":
            (made.folder / "manifest.json").write_text("{")
        case "gone":
            (made.folder / "weights.safetensors").unlink()
        case "format":
            manifest["format"] = 2
        case "step":
            manifest["step"] = 3
        case "path":
            manifest["files"] = {"../step-000001/weights.safetensors": manifest["files"]["weights.safetensors"]}
    if change in ("format", "step", "path"):
        (made.folder / "manifest.json").write_text(json.dumps(manifest))
    found = newest(tmp_path)
    assert found is not None and found[0].step == 1 and torch.equal(found[1]["weights"]["a"], torch.zeros(3))


def test_tensors_of_every_type_and_shape_come_back_bit_for_bit(tmp_path: Path) -> None:
    types = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    tensors = {f"{dtype}".removeprefix("torch."): (torch.randn(3, 5) * 50).to(dtype) for dtype in types}
    tensors |= {"bool": torch.tensor([True, False]), "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "turned": torch.randn(4, 3).T}
    save(tmp_path, 7, {"all": tensors}, {})
    found = newest(tmp_path)
    assert found is not None
    assert all(torch.equal(found[1]["all"][name], each) and found[1]["all"][name].dtype == each.dtype for name, each in tensors.items())


def test_curves_for_tensorboard_are_written_on_demand(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    trained(tmp_path / "a", replace(TINY, tensorboard=True))
    assert list((tmp_path / "a" / "tensorboard").glob("events*"))
