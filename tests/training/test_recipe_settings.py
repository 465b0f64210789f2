"""Settings of recipes: a number that would say nothing is refused by name, in Python, in files and on the command line alike."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cli.running import invoke
from herd.errors import UsageError
from herd.training.settings.distill import DistillSettings
from herd.training.settings.grpo import GrpoSettings
from herd.training.settings.preferences import METHODS, OF, PreferenceLoss, PreferenceSettings
from herd.training.settings.pretrain import PretrainSettings, RopeSettings, SourceSettings, StageSettings, TeacherSettings
from herd.training.settings.reading import described, from_toml, read_settings, to_toml
from herd.training.settings.rejection import RejectionSettings
from herd.training.settings.reward_model import RewardModelSettings
from herd.training.settings.rewards import RewardSettings
from herd.training.settings.sft import SftSettings
from herd.training.shape import ModelSettings

NEEDED = {"model": "m", "data": ("d",)}
KINDS: Mapping[Any, Mapping[str, Any]] = {
    SftSettings: NEEDED,
    PreferenceSettings: NEEDED,
    RewardModelSettings: NEEDED,
    GrpoSettings: NEEDED,
    DistillSettings: {**NEEDED, "teacher": "t"},
    RejectionSettings: NEEDED,
    PretrainSettings: {},
}
OTHER = {"nll": 0.5, "margin": 1.0, "label_smoothing": 0.1, "gamma": 1.0, "desirable": 2.0, "undesirable": 2.0}


@pytest.mark.parametrize("change", ["rank=8", "alpha=8", "dora=true", "dropout=0.1", "stabilised=true", 'targets=["q"]'])
def test_updates_are_described_only_where_there_are_some(change: str) -> None:
    with pytest.raises(UsageError, match=rf"lora\.{change.partition('=')[0]} is .*expected nothing .*take method lora \(--lora\)"):
        read_settings(SftSettings, None, [f"student.lora.{change}"], NEEDED)
    read_settings(SftSettings, None, [f"student.lora.{change}", "student.method=lora"], NEEDED)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_takes_its_own_numbers_and_no_others(method: str) -> None:
    for name, value in OTHER.items():
        given: Mapping[str, Any] = {"method": method, name: value}
        if method in OF[name]:
            assert getattr(PreferenceLoss(**given), name) == value
            continue
        with pytest.raises(UsageError, match=f"^{name} is {value}; expected nothing with the method {method}: it is of {OF[name][0]}"):
            PreferenceLoss(**given)


def test_a_share_beside_files_that_are_held_out_is_refused() -> None:
    files = {**NEEDED, "held_out_data": ("h",)}
    with pytest.raises(UsageError, match=r"held_out is 0\.2; expected nothing beside held_out_data"):
        read_settings(SftSettings, None, ["held_out=0.2"], files)
    settled = read_settings(SftSettings, None, ["held_out=0"], files).resolved(8, 2)
    assert from_toml(SftSettings, to_toml(settled), "config.toml") == settled


@pytest.mark.parametrize(
    ("kind", "more"), [(GrpoSettings, {}), (DistillSettings, {"teacher": "t"}), (RejectionSettings, {})], ids=["grpo", "distill", "reject"]
)
def test_what_answers_are_drawn_by_is_checked_before_anything_is_opened(kind: Any, more: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="backend is 'foo'; expected cpu or torch or reference"):
        kind(**NEEDED, **more, backend="foo")


def test_without_rewards_all_answers_are_kept_and_none_has_to_be_worth_something() -> None:
    number = (RewardSettings(kind="number"),)
    assert RejectionSettings(**NEEDED, answers=5).most == 5
    assert RejectionSettings(**NEEDED, answers=5, keep=2).most == 2
    assert RejectionSettings(**NEEDED, answers=5, rewards=number).most == 1
    with pytest.raises(UsageError, match=r"least is 0\.5; expected nothing without rewards"):
        RejectionSettings(**NEEDED, least=0.5)
    with pytest.raises(UsageError, match="keep is 0"):
        RejectionSettings(**NEEDED, keep=0)


@pytest.mark.parametrize("epochs", [("--epochs", "2"), ("--set", "epochs=2")], ids=["option", "setting"])
def test_a_run_is_as_long_as_one_of_two_options_says(epochs: tuple[str, str]) -> None:
    done = invoke("tune", "sft", "--model", "m", "--data", "d", "--steps", "10", *epochs)
    assert done.exit_code == 2 and "--steps and --epochs both say how long the run is" in done.output


@pytest.mark.parametrize(
    ("recipe", "method"), [("sft", "full"), ("distill", "full"), ("dpo", "lora"), ("reward", "lora"), ("grpo", "lora")]
)
def test_help_says_what_a_recipe_learns_if_nothing_is_said(recipe: str, method: str) -> None:
    said = " ".join(invoke("tune", recipe, "--help").output.split())
    assert f"Learn low-rank updates, or every weight. [default: {method}]" in said


def test_without_rewards_the_command_writes_every_answer(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
    from cli.chat_model import write

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": each, "completion": each}) + "\n" for each in "ab"))
    out = tmp_path / "made.jsonl"
    few = ("--max-tokens", "60", "--out", str(out), "--json", "--set", "answers=6")
    done = invoke("tune", "reject", "--model", str(write(tmp_path / "model")), "--data", str(prompts), *few)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kept"] == len(out.read_text().splitlines()) > 2


def test_a_recipe_of_updates_stays_one_whatever_else_is_said_of_its_student() -> None:
    settings = read_settings(PreferenceSettings, None, ["student.dtype=float32", "optimiser.name=muon", "student.lora.rank=4"], NEEDED)
    assert settings.student.method == "lora" and settings.student.lora.rank == 4


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_setting_takes_what_is_no_finite_number(kind: Any) -> None:
    numbers = [each.name for each in described(kind) if each.kind.startswith("a number") and "[]" not in each.name]
    assert numbers
    for name in numbers:
        for value in ("nan", "inf", "-inf"):
            with pytest.raises(UsageError, match=name.rpartition(".")[2]):
                read_settings(kind, None, [f"{name}={value}"], KINDS[kind])


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (ModelSettings, "norm_eps", (0.0, -1.0)),
        (ModelSettings, "rope_theta", (0.0, -5.0)),
        (ModelSettings, "temper_floor", (0.0,)),
        (ModelSettings, "temper_scale", (-1.0,)),
        (ModelSettings, "expert_every", (-1,)),
        (TeacherSettings, "temperature", (0.0,)),
        (SourceSettings, "weight", (0.0,)),
        (RopeSettings, "factor", (0.5,)),
        (RopeSettings, "theta", (0.0,)),
    ],
)
def test_numbers_that_no_model_can_be_made_of_are_refused_by_name(kind: Any, name: str, values: tuple[float, ...]) -> None:
    more: Mapping[str, Any] = {"path": ("d",)} if kind is SourceSettings else {}
    strange = (math.nan, math.inf, -math.inf) if name != "expert_every" else ()
    for value in (*values, *strange):
        with pytest.raises(UsageError, match=rf"{name} is {value}; expected"):
            kind(**more, **{name: value})


def test_a_mix_of_what_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match=r"stages\.mix"):
        StageSettings(steps=1, mix={"web": math.inf})
