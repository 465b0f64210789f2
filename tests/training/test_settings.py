"""Settings: what is read from where, what is refused and how, and what is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import pytest

from herd.errors import FileProblem, UsageError
from herd.records import dataclass
from herd.training.settings.distill import DistillSettings
from herd.training.settings.grpo import GrpoSettings
from herd.training.settings.loop import LoopSettings
from herd.training.settings.preferences import PreferenceSettings
from herd.training.settings.pretrain import PretrainSettings
from herd.training.settings.reading import described, differences, from_toml, read_settings, to_toml
from herd.training.settings.rejection import RejectionSettings
from herd.training.settings.reward_model import RewardModelSettings
from herd.training.settings.sft import SftSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Texts.

    path    where they are
    share   how much of the mix
    """

    path: Path = Path("data")
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A recipe.

    loop       the loop
    sources    what it learns from
    rank       of the updates,
               a small number
    targets    names
    kind       which
    teacher    a model
    api_key    of the teacher
    weights    by name
    """

    loop: LoopSettings = field(default_factory=LoopSettings)
    sources: tuple[Source, ...] = ()
    rank: int = 16
    targets: tuple[str, ...] = ("q", "k")
    kind: Literal["full", "lora"] = "lora"
    teacher: Path | None = None
    api_key: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('rank = 8\ntargets = ["v"]\n[loop]\nseed = 3\n[loop.schedule]\nsteps = 10\nwarmup = 2\n[[sources]]\npath = "a"\n')
    found = read_settings(Example, file, ["loop.seed=4", "loop.schedule.steps=20", "kind=full"], {"loop.schedule.steps": 30})
    assert (found.rank, found.targets, found.kind) == (8, ("v",), "full")
    assert (found.loop.seed, found.loop.schedule.steps, found.loop.schedule.warmup) == (4, 30, 2)
    assert found.sources == (Source(path=Path("a")),)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("ranc=1", "there is no setting 'ranc'; did you mean 'rank'?"),
        ("loop.sede=1", "there is no setting 'loop.sede'; did you mean 'loop.seed'?"),
        ("warmup=5", "there is no setting 'warmup'; did you mean 'loop.schedule.warmup'?"),
        ("loop.schedule.warmup=x", "loop.schedule.warmup is 'x'; expected a whole number"),
        ("rank=true", "rank is True; expected a whole number"),
        ("rank=1.5", "rank is 1.5; expected a whole number"),
        ("loop=3", "loop is 3; expected a table of settings"),
        ("kind=lara", "expected one of full, lora; did you mean 'lora'?"),
        ("targets=3", "targets is 3; expected a list, each a text"),
        ("weights=3", "weights is 3; expected a table, each a number"),
        ("rank", "expected NAME=VALUE"),
        ("=1", "expected NAME=VALUE"),
        ("loop.schedule.lr=-1", "learning rate is -1"),
        ("loop.schedule.warmup=5000", "The warm-up has 5000 steps; the whole run has 1000"),
        ("loop.keep_last=0", "keep_last is 0; expected a whole number, 1 or more"),
        ("loop.keep_best=true", "keep_best is True; expected false where evaluate_every is 0"),
        ("loop.clip=nan", "clip is nan"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        read_settings(Example, None, [change])
    assert complaint in str(error.value)


def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path) -> None:
    for name, text in (("yaml", b"!!python/object:os.system\n"), ("bytes", b"\xff\xfe"), ("nested", b"a=" + b"[" * 100_000)):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(FileProblem, match=name):
            read_settings(Example, tmp_path / name)
    with pytest.raises(FileProblem, match="cannot be read"):
        read_settings(Example, tmp_path / "absent")


def test_a_wrong_name_in_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[[sources]]\npath = 'x'\nsare = 2\n")
    with pytest.raises(UsageError, match=r"a\.toml: there is no setting 'sources\[0\]\.sare'; did you mean"):
        read_settings(Example, tmp_path / "a.toml")


def test_what_is_written_down_is_read_back_and_secrets_are_not_in_it() -> None:
    made = Example(
        sources=(Source(path=Path('a "b"\n\\c'), share=0.25), Source()), api_key="sk-1234", teacher=Path("t"), weights={"a b": 1e-7}
    )
    text = to_toml(made)
    assert "sk-1234" not in text and "(not kept)" in text
    assert from_toml(Example, text, "config.toml") == Example(sources=made.sources, teacher=made.teacher, weights=made.weights)


def test_differences_are_listed_by_name_and_without_secrets() -> None:
    then = Example(rank=4, api_key="a", sources=(Source(),))
    now = Example(api_key="b", teacher=Path("t"), sources=(Source(share=2.0),))
    assert differences(then, now) == [
        "sources[0].share: 1.0 then, 2.0 now",
        "rank: 4 then, 16 now",
        'teacher: not set then, "t" now',
    ]


def test_every_setting_has_its_help() -> None:
    found = {setting.name: setting for setting in described(Example)}
    assert found["rank"].help == "of the updates, a small number" and found["rank"].default == "16"
    assert found["sources[].share"].help == "how much of the mix"
    assert [setting.name for setting in described(Example) if not setting.help] == []


KINDS = {
    kind.__name__: kind
    for kind in (SftSettings, PreferenceSettings, RewardModelSettings, GrpoSettings, DistillSettings, RejectionSettings, PretrainSettings)
}


@pytest.mark.parametrize("name", KINDS)
def test_a_change_of_one_setting_changes_no_other(name: str) -> None:
    """What a recipe begins a part with stays, whatever of that part is said."""
    needed = {"model": "m", "data": ("d",), "teacher": "t"}
    given: dict[str, Any] = {
        each.name: needed[each.name] for each in described(KINDS[name]) if each.default == "required" and each.name in needed
    }
    if name == "DistillSettings":
        given = needed
    if name == "PretrainSettings":
        given = {"tokenizer": "words", "data": [{"path": ["a"]}]}
    plain = read_settings(KINDS[name], None, (), given)
    told = [
        each
        for each in described(KINDS[name])
        if each.default not in ("required", "not set") and "[]" not in each.name and each.name not in given
    ]
    assert len(told) > 6
    for each in told:
        again = read_settings(KINDS[name], None, [f"{each.name}={each.default}"], given)
        assert differences(plain, again) == [], each.name


def test_updates_are_learned_by_default_where_the_recipe_says_so_and_only_the_device_is_said() -> None:
    found = read_settings(GrpoSettings, None, ["student.device=cuda", "optimiser.name=muon"], {"model": "m", "data": ("d",)})
    assert (found.student.method, found.student.device) == ("lora", "cuda")
    assert (found.optimiser.weight_decay, found.optimiser.beta2) == (0.0, 0.99)
    assert {each.name: each.default for each in described(GrpoSettings)}["student.method"] == '"lora"'


def test_lists_of_parts_are_shown_as_toml_writes_them() -> None:
    assert {each.name: each.default for each in described(GrpoSettings)}["rewards"] == '[{kind = "number"}]'


def test_a_share_of_examples_is_below_one_and_a_number_of_them_whole() -> None:
    with pytest.raises(UsageError, match=r"held_out is 1\.5; expected a share below 1, or a whole number"):
        read_settings(SftSettings, None, ["held_out=1.5"], {"model": "m", "data": ("d",)})
    assert read_settings(SftSettings, None, ["held_out=2"], {"model": "m", "data": ("d",)}).held_out == 2
