"""From data to a model that answers: `herd tune sft` on a tiny model, and everything that can be done with what it leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import herd
from cli.chat_model import write
from herd.api.tuning_run import Conduct, Tuned
from herd.api.tuning_sft import tune_sft
from herd.checkpoints.trained import trained_in
from herd.convert import convert
from herd.errors import CapacityError, FileProblem, UsageError
from herd.training.running.loop import Told
from herd.training.running.overview import overview
from herd.training.settings.reading import read_settings
from herd.training.settings.sft import SftSettings

LINES = [("a", "xx"), ("b", "yy")] * 8
CHANGES = ["batch=4", "epochs=0", "loop.schedule.steps=40", "held_out=2", "samples=1", "lr=0.003", "student.dtype=float32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "faq.jsonl"
    lines = [{"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": two}]} for one, two in LINES]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tune(base: Path, data: Path, folder: Path, *changes: str) -> Tuned:
    settings = read_settings(SftSettings, None, [*CHANGES, *changes], {"model": str(base), "data": (str(data),)})
    return tune_sft(settings, folder)


@pytest.fixture(scope="module")
def run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    yield tune(base, data, tmp_path_factory.mktemp("runs") / "faq", "student.method=lora", "student.lora.rank=4")


def said(model: str | Path, text: str, **choices: str) -> str:
    with herd.load(model, context=64, **choices) as loaded:
        events = loaded.chat([{"role": "user", "content": text}], temperature=0.0, max_tokens=4)
        return loaded.collect([], events).text


def test_the_run_is_talked_to_at_once_and_has_learned(run: Tuned) -> None:
    assert run.model == run.folder / "adapter" and run.end.is_complete
    assert said(run.folder, "a") == "xx" and said(run.folder, "b") == "yy"
    assert said(run.folder, "a", backend="torch") == "xx"
    (answered,) = run.answers
    assert answered.after == answered.wanted != answered.before
    assert json.loads((run.folder / "samples.json").read_text())[0]["after"] == answered.after
    assert run.curves is not None and run.curves.is_file()
    logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert losses[-1] < 0.1 < losses[0]


def test_an_adapter_is_put_together_with_its_base_in_every_layout(run: Tuned, tmp_path: Path) -> None:
    convert(run.folder, tmp_path / "merged", to="hf")
    convert(run.folder, tmp_path / "merged.gguf", to="gguf")
    assert said(tmp_path / "merged", "a") == said(tmp_path / "merged.gguf", "a") == "xx"
    with (
        herd.load(run.folder, backend="reference", context=64) as one,
        herd.load(tmp_path / "merged", backend="reference", context=64) as two,
    ):
        tokens = one.tokenizer.encode("some text")
        assert abs(one.logits(tokens) - two.logits(tokens)).max() < 1e-3


def test_a_served_base_takes_the_run_as_an_adapter(base: Path, run: Tuned) -> None:
    with herd.load(base, context=64) as model:
        model.add_adapter("faq", run.folder)
        events = model.chat([{"role": "user", "content": "b"}], temperature=0.0, max_tokens=4, adapter="faq")
        assert model.collect([], events).text == "yy"


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        (["student.method=full", "lr=0.001"], "model"),
        pytest.param(["student.method=lora", "student.lora.dora=true"], "adapter", marks=pytest.mark.slow),
        pytest.param(["student.method=lora", "student.base=q4_0"], "adapter", marks=pytest.mark.slow),
        (["student.method=lora", "student.qat=true"], "adapter"),
        (["student.method=full", "student.qat=true", "lr=0.001"], "model.gguf"),
    ],
    ids=["all weights", "dora", "over four bits", "updates for four bits", "all weights for four bits"],
)
def test_every_way_of_learning_leaves_a_model_that_answers(base: Path, data: Path, tmp_path: Path, changes: list[str], left: str) -> None:
    tuned = tune(base, data, tmp_path / "run", "samples=0", *changes)
    assert tuned.model == tmp_path / "run" / left
    assert [said(tuned.folder, text) for text in "ab"] == ["xx", "yy"]


@pytest.mark.parametrize(
    "changes", [["student.method=lora", "student.lora.rank=2"], ["student.method=full", "lr=0.001"]], ids=["updates", "all weights"]
)
def test_a_run_goes_on_from_what_another_has_learned(run: Tuned, tmp_path: Path, changes: list[str]) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"prompt": one, "completion": two}) + "\n" for one, two in [*LINES, ("c", "zz"), ("c", "zz")]))
    again = tune(run.folder, more, tmp_path / "again", *changes, "held_out=0", "samples=0")
    assert [said(again.folder, text) for text in "abc"] == ["xx", "yy", "zz"]
    begun, left = json.loads((again.folder / "facts.json").read_text()), trained_in(again.folder)
    assert str(run.folder / "adapter" / "adapter_model.safetensors") in begun["data"]
    if "student.method=lora" in changes:
        assert left is not None and left.model == trained_in(run.folder).model  # type: ignore[union-attr]
        untouched = tune(run.folder, more, tmp_path / "untouched", *changes, "held_out=0", "samples=0", "lr=1e-30", "loop.schedule.steps=1")
        with herd.load(run.folder, backend="reference") as one, herd.load(untouched.folder, backend="reference") as two:
            tokens = one.tokenizer.encode("some text")
            assert abs(one.logits(tokens) - two.logits(tokens)).max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        (["student.method=lora", "student.lora.rank=4"], "adapter"),
        (["student.method=full"], "model"),
        (["student.method=full", "student.qat=true"], "."),
    ],
    ids=["updates", "all weights", "four bits"],
)
def test_what_a_run_leaves_carries_what_the_licence_of_its_model_asks_for(
    data: Path, tmp_path: Path, changes: list[str], place: str
) -> None:
    named = write(tmp_path / "Llama-3.2-1B-Instruct")
    few = ["samples=0", "held_out=0", "loop.schedule.steps=1"]
    bare = tune(named, data, tmp_path / "bare", *few, *changes)
    assert any("LICENSE is missing" in note for note in bare.notes)
    (named / "LICENSE.txt").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    tuned = tune(named, data, tmp_path / "run", *few, *changes)
    assert not any("LICENSE" in note for note in tuned.notes)
    assert (tuned.folder / place / "LICENSE.txt").read_text().startswith("LLAMA 3.2")
    assert "Llama 3.2 is licensed" in (tuned.folder / place / "NOTICE").read_text()


def test_what_is_held_out_can_have_files_of_its_own(base: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "held.jsonl"
    other.write_text("".join(json.dumps({"prompt": "a", "completion": two}) + "\n" for two in ("xx", "yy", "")))
    few = ["student.method=lora", "loop.schedule.steps=1", "held_out=0.05", f"held_out_data=['{other}']"]
    tuned = tune(base, data, tmp_path / "run", *few)
    assert (tuned.account.num_read, tuned.account.num_kept) == (len(LINES) + 3, len(LINES) + 2)
    assert [each.wanted for each in tuned.answers] == ["xx"] and tuned.held_out["before_loss"] > 0
    assert "held_out = 0.0" in (tuned.folder / "config.toml").read_text()
    assert str(other) in json.loads((tuned.folder / "facts.json").read_text())["data"]


def test_a_stopped_run_goes_on_to_the_same_end(base: Path, data: Path, run: Tuned, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def told(news: Told) -> None:
        if news.step == 20:
            raise Enough

    changes = [*CHANGES, "student.method=lora", "student.lora.rank=4", "loop.save_every=8"]
    settings = read_settings(SftSettings, None, changes, {"model": str(base), "data": (str(data),)})
    with pytest.raises(Enough):
        tune_sft(settings, tmp_path / "run", Conduct(told=told))
    with pytest.raises(FileProblem, match="has not come to its end"):
        trained_in(tmp_path / "run")
    again = tune_sft(settings, tmp_path / "run", Conduct(resume=True))
    assert again.held_out == run.held_out and again.held_out["before_loss"] > again.held_out["loss"]
    ours, theirs = (folder / "adapter" / "adapter_model.safetensors" for folder in (tmp_path / "run", run.folder))
    assert ours.read_bytes() == theirs.read_bytes()


def test_what_an_earlier_end_left_stays_until_the_new_one_is_whole(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["student.method=lora", "student.lora.rank=1", "samples=0", "held_out=0"]
    tuned = tune(base, data, tmp_path / "run", *few, "loop.schedule.steps=1")
    weights = tuned.folder / "adapter" / "adapter_model.safetensors"
    earlier = weights.read_bytes()
    changes = [*CHANGES, *few, "loop.schedule.steps=2"]
    settings = read_settings(SftSettings, None, changes, {"model": str(base), "data": (str(data),)})

    def full(*where: Path) -> None:
        raise CapacityError("The disk is full.")

    with monkeypatch.context() as failing, pytest.raises(CapacityError):
        failing.setattr("herd.api.tuning.write_notices", full)
        tune_sft(settings, tuned.folder, Conduct(resume=True, force=True))
    failed = overview(tuned.folder)
    assert failed.state.can_resume and failed.why == "CapacityError: The disk is full."
    assert weights.read_bytes() == earlier and not list(tuned.folder.glob(".*.part"))
    (tuned.folder / ".run.1-a.part" / "adapter").mkdir(parents=True)
    tune_sft(settings, tuned.folder, Conduct(resume=True, force=True))
    assert weights.read_bytes() != earlier and not list(tuned.folder.glob(".*.part"))


def test_what_cannot_be_is_refused_before_anything_is_computed(base: Path, data: Path, run: Tuned, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="herd tune merge"):
        tune(run.folder, data, tmp_path / "one", "student.method=lora", "student.base=q4_0")
    with pytest.raises(UsageError, match="two runs cannot be added up"):
        tune(run.folder, data, tmp_path / "one", "student.method=lora", "student.lora.dora=true")
    with pytest.raises(UsageError, match="epochs say it"):
        tune(base, data, tmp_path / "two", "epochs=2")
    preferences = tmp_path / "pairs.jsonl"
    preferences.write_text('{"prompt": "a", "chosen": "x", "rejected": "y"}\n')
    with pytest.raises(UsageError, match="herd tune dpo"):
        tune(base, preferences, tmp_path / "three")
    empty = write(tmp_path / "wordless", has_tokenizer=False)
    with pytest.raises(FileProblem, match="has no tokenizer"):
        tune(empty, data, tmp_path / "four")
    assert not (tmp_path / "one").exists()


def test_an_adapter_without_a_known_base_says_so(run: Tuned, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(FileProblem, match="does not say which model"):
        herd.load(folder)
