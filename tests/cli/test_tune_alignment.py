"""`herd tune dpo`, `simpo`, `kto`, `orpo`, `reward`, `grpo`, `reject`, `distill`: from files to a folder that answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from click.testing import CliRunner

import herd
from cli.chat_model import write
from herd.cli.main import main
from herd.training.recipes.reward_model import FILE, read_head

PAIRS = [{"prompt": one, "chosen": one + one, "rejected": "q"} for one in "abcdefghij"]
SMALL = ("--set", "student.dtype=float32", "--set", "loop.save_minutes=0", "--lora", "--rank", "4", "--batch", "4", "--held-out", "3")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base") / "model")


def lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return str(path)


def run(*words: object) -> Any:
    """What a command prints as JSON."""
    found = CliRunner().invoke(main, ["tune", *map(str, words), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def figures(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["dpo", "simpo", "orpo"])
def test_pairs_are_learned_and_the_folder_answers(method: str, base: Path, tmp_path: Path) -> None:
    data, out = lines(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "run"
    told = run(method, "--model", base, "--data", data, "--out", out, "--steps", 6, "--lr", 0.003, *SMALL)
    assert told["end"] == "finished" and "before_accuracy" in told["held_out"]
    losses = [each["loss"] for each in figures(out) if "loss" in each]
    assert losses[-1] < losses[0]
    with herd.load(out, context=64) as model:
        events = model.chat([{"role": "user", "content": "a"}], temperature=0.0, max_tokens=3)
        assert isinstance(model.collect([], events).text, str)


def test_single_judgements_are_learned(base: Path, tmp_path: Path) -> None:
    judged = [{"prompt": one, "completion": one if index % 2 else "q", "label": bool(index % 2)} for index, one in enumerate("abcdefghij")]
    data = lines(tmp_path / "judged.jsonl", judged)
    told = run("kto", "--model", base, "--data", data, "--out", tmp_path / "run", "--steps", 8, "--lr", 0.003, *SMALL)
    losses = [each["loss"] for each in figures(tmp_path / "run") if "kl" in each]
    assert told["end"] == "finished" and losses[-1] < losses[0]


def test_records_of_another_kind_are_refused(base: Path, tmp_path: Path) -> None:
    data = lines(tmp_path / "pairs.jsonl", PAIRS)
    found = CliRunner().invoke(main, ["tune", "kto", "--model", str(base), "--data", data, "--out", str(tmp_path / "run")])
    assert found.exit_code == 2 and "prompt, completion and label" in found.output


def test_margins_count_where_they_are_asked_for(base: Path, tmp_path: Path) -> None:
    bare, judged = lines(tmp_path / "bare.jsonl", PAIRS), lines(tmp_path / "m.jsonl", [{**each, "margin": 5} for each in PAIRS])
    few = ("--model", base, "--steps", 1, *SMALL)
    plain = run("dpo", "--data", judged, "--out", tmp_path / "plain", "--nll", 0, *few)
    counted = run("dpo", "--data", judged, "--out", tmp_path / "counted", "--nll", 0, "--margin", 1, *few)
    assert "its margin does not count" in json.dumps(plain["data"]) and "margin" not in json.dumps(counted["data"])
    assert counted["held_out"]["before_loss"] == pytest.approx(5.0067, abs=1e-3)
    assert plain["held_out"]["before_loss"] == pytest.approx(0.6931, abs=1e-3)
    mixed = lines(tmp_path / "mixed.jsonl", [{**each, "margin": 5} if at % 2 else each for at, each in enumerate(PAIRS)])
    notes = run("dpo", "--data", mixed, "--out", tmp_path / "mixed", "--margin", 1, *few)["data"]["notes"]
    assert notes["it says no margin, which counts as 0"]["count"] == 5
    words = ["tune", "reward", "--model", str(base), "--data", bare, "--out", str(tmp_path / "none"), "--margin", "1"]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 2 and "no record of the data says by how much" in found.output


def test_a_reward_model_keeps_its_head_beside_its_updates(base: Path, tmp_path: Path) -> None:
    data, out = lines(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "run"
    told = run("reward", "--model", base, "--data", data, "--out", out, "--steps", 8, "--lr", 0.01, *SMALL)
    assert told["held_out"]["accuracy"] == 1
    with herd.load(base, context=64) as model:
        assert read_head(out, model.config.width).abs().max() > 0 and (out / FILE).is_file()


def test_a_function_of_ones_own_is_learned_online(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def short(answer, task):\n    return -len(answer) / 8\n")
    data = lines(tmp_path / "prompts.jsonl", [{"prompt": one, "answer": one} for one in "abcdefgh"])
    common = ("grpo", "--model", base, "--data", data, "--reward", f"{tmp_path / 'mine.py'}:short", "--lora", "--rank", 4, "--lr", 0.02)
    more = ("--prompts", 2, "--answers", 4, "--max-tokens", 4, "--held-out", 1, "--set", "student.dtype=float32", "--steps", 3)
    told = run(*common, *more, "--out", tmp_path / "run")
    assert told["end"] == "finished" and "reward" in told["held_out"]
    found = [each for each in figures(tmp_path / "run") if "gap_most" in each]
    assert len(found) == 3 and all(each["gap_most"] < 1e-3 for each in found)


def test_the_best_answers_are_written_down(base: Path, tmp_path: Path) -> None:
    data, out = lines(tmp_path / "prompts.jsonl", [{"prompt": one, "answer": "x"} for one in "abc"]), tmp_path / "made.jsonl"
    told = run("reject", "--model", base, "--data", data, "--reward", "length", "--answers", 4, "--max-tokens", 40, "--out", out)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert told["prompts"] == 3 and told["kept"] == len(records) <= 3
    for record in records:
        assert [message["role"] for message in record["messages"]] == ["user", "assistant"] and record["reward"] == 1
    found = CliRunner().invoke(main, ["tune", "reject", "--model", str(base), "--data", data, "--out", str(out)])
    assert found.exit_code == 2 and "is there already" in found.output and len(out.read_text().splitlines()) == len(records)


def test_prompts_alone_are_answered_by_a_teacher_and_refused_where_something_is_checked(base: Path, tmp_path: Path) -> None:
    data, out = lines(tmp_path / "prompts.jsonl", [{"prompt": one} for one in "ab"]), tmp_path / "made.jsonl"
    told = run("reject", "--model", base, "--data", data, "--answers", 1, "--max-tokens", 40, "--out", out)
    assert told["prompts"] == 2 and told["complete"] and told["kept"] == len(out.read_text().splitlines())
    common = ("tune", "grpo", "--model", str(base), "--data", data, "--out", str(tmp_path / "run"))
    found = CliRunner().invoke(main, [*common, "--reward", "number"])
    assert found.exit_code == 2 and "prompts.jsonl:1: the task has no 'answer' to check answers by; it has nothing" in found.output
    found = CliRunner().invoke(main, ["tune", "sft", "--model", str(base), "--data", data])
    assert found.exit_code == 2 and "is a record of the shape task; supervised fine-tuning learns conversations" in found.output


def test_prompts_that_leave_no_room_for_an_answer_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    with herd.load(base, context=64) as model:
        context = model.config.context_length
    data = lines(tmp_path / "prompts.jsonl", [{"prompt": "a", "answer": "x"}, {"prompt": "a" * (context - 40), "answer": "x"}])
    common = ("reject", "--model", base, "--data", data, "--answers", 1)
    told = run(*common, "--max-tokens", 60, "--out", tmp_path / "made.jsonl")
    assert told["prompts"] == 1 and "longer than the limit" in json.dumps(told["data"])
    found = CliRunner().invoke(main, ["tune", *map(str, common), "--max-tokens", str(context), "--out", str(tmp_path / "none.jsonl")])
    assert found.exit_code == 2 and f"max_tokens is {context:,}" in found.output


@pytest.mark.parametrize("way", ["--stored", "--on-policy"])
def test_a_teacher_is_learned_from(way: str, base: Path, tmp_path: Path) -> None:
    student = write(tmp_path / "student")
    records: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": "zz"}]} for one in "abcdef"
    ]
    data, out = lines(tmp_path / "chats.jsonl", records), tmp_path / "run"
    words = ("--model", student, "--teacher", base, "--data", data, "--out", out, "--k", 4, "--steps", 2, "--held-out", 1, "--batch", 2)
    told = run("distill", *words, way, "--max-tokens", 32, "--set", "student.dtype=float32")
    assert told["end"] == "finished" and (out / "model").is_dir()
    if way == "--stored":
        assert (tmp_path / "run-teacher" / "teacher.json").is_file()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("way", ["--lora", "--full"])
def test_what_learns_for_four_bits_answers_in_those_while_it_learns(way: str, backend: str, base: Path, tmp_path: Path) -> None:
    data = lines(tmp_path / "prompts.jsonl", [{"prompt": one, "answer": one} for one in "abcd"])
    few = ("--prompts", 2, "--answers", 2, "--max-tokens", 8, "--held-out", 0, "--lr", 0.02, "--steps", 2, "--backend", backend)
    words = ("--model", base, "--data", data, "--out", tmp_path / "run", way, "--qat", *few, "--set", "student.dtype=float32")
    (tmp_path / "length.py").write_text("def score(answer, task): return len(answer)")
    kl = ("--set", "loss.kl=0.1") if way == "--full" else ()
    told = run("grpo", *words, "--reward", f"{tmp_path / 'length.py'}:score", *kl)
    found = [line for line in figures(tmp_path / "run") if "gap_most" in line]
    assert len(found) == 2 and all(line["gap_most"] < 1e-3 for line in found), found
    assert Path(told["model"]).name == ("adapter" if way == "--lora" else "model.gguf")
    with herd.load(tmp_path / "run", context=64) as model:
        assert model.collect([], model.chat([{"role": "user", "content": "a"}], temperature=0.0, max_tokens=3))


@pytest.mark.parametrize("more", [(), ("--dora",)], ids=["updates", "DoRA"])
def test_answers_are_drawn_over_the_very_base_in_blocks_that_learns(more: tuple[str, ...], base: Path, tmp_path: Path) -> None:
    data = lines(tmp_path / "prompts.jsonl", [{"prompt": one, "answer": one} for one in "abcd"])
    few = ("--prompts", 2, "--answers", 2, "--max-tokens", 8, "--held-out", 0, "--rank", 4, "--lr", 0.02, "--steps", 3)
    words = ("--model", base, "--data", data, "--out", tmp_path / "run", "--base", "q4_0", *more, *few, "--set", "student.dtype=float32")
    (tmp_path / "length.py").write_text("def score(answer, task): return len(answer)")
    run("grpo", *words, "--reward", f"{tmp_path / 'length.py'}:score")
    found = [line for line in figures(tmp_path / "run") if "gap_most" in line]
    assert len(found) == 3 and all(line["gap_most"] < 1e-3 for line in found), found
    chats = [{"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": "z"}]} for one in "abcd"]
    words = ("--model", base, "--teacher", base, "--data", lines(tmp_path / "chats.jsonl", chats), "--out", tmp_path / "taught")
    few = ("--base", "q8_0", "--lora", "--on-policy", "--k", 4, "--steps", 2, "--held-out", 0, "--batch", 2, "--max-tokens", 8)
    run("distill", *words, *few, *more, "--set", "student.dtype=float32")
    found = [line for line in figures(tmp_path / "taught") if "gap_most" in line]
    assert len(found) == 2 and all(line["gap_most"] < 1e-3 for line in found), found


def test_unknown_rewards_are_refused_with_what_was_meant(base: Path) -> None:
    found = CliRunner().invoke(main, ["tune", "grpo", "--model", str(base), "--data", "x", "--reward", "numbr"])
    assert found.exit_code == 2 and "did you mean 'number'" in found.output
