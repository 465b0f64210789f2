"""What `herd tune` learns in two processes that hold one model, or one document, together is what one process learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
import torch

from herd.errors import UsageError
from herd.training.settings.lora import Lora
from herd.training.settings.parallel import ParallelSettings
from herd.training.settings.sft import SftSettings
from herd.training.settings.student import StudentSettings
from training import together
from training.programs import run_file
from training.test_parallel import learned, losses

TENSOR = ["lora-adamw-whole", "dropped-adamw-whole", "sft-adamw-whole"]
MORE = ["full-adamw-whole", "dpo-adamw-whole", "kto-adamw-whole", "reward-adamw-whole", "distill-adamw-whole"]
EXPERTS = ["llama4 sft-adamw-whole", "llama4 lora-adamw-whole", "llama4 full-adamw-whole"]
CONTEXT = ["lora-adamw-whole", "sft-adamw-whole", "full-adamw-divided"]


def same(one: Path, two: Path) -> None:
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-6, atol=1e-8)
    ours, theirs = learned(two), learned(one)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def compare(way: str, cases: list[str], folder: Path) -> None:
    run_file("together.py", str(folder / "two"), way, *cases)
    for case in cases:
        together.work(folder / "one" / case, case)
        same(folder / "one" / case, folder / "two" / case)


def test_two_processes_that_hold_heads_columns_and_half_the_experts_each_learn_what_one_learns(tmp_path: Path) -> None:
    compare("both", EXPERTS[:1], tmp_path)


@pytest.mark.slow  # two pairs of processes
def test_so_it_is_where_they_hold_only_heads_and_columns_or_only_experts(tmp_path: Path) -> None:
    compare("tensor", TENSOR, tmp_path / "tensor")
    compare("expert", EXPERTS[:1], tmp_path / "expert")


@pytest.mark.slow  # two pairs of processes
def test_heads_columns_and_experts_are_divided_for_other_recipes_too(tmp_path: Path) -> None:
    compare("both", [*EXPERTS, "llama4 dpo-adamw-whole"], tmp_path / "both")
    compare("expert", [*EXPERTS[1:], *(f"llama4 {each}-adamw-whole" for each in ("dropped", "dpo", "distill"))], tmp_path / "expert")


@pytest.mark.slow  # two pairs of processes
def test_so_it_is_for_every_recipe_over_examples_and_for_stretches_of_documents(tmp_path: Path) -> None:
    compare("tensor", MORE, tmp_path / "tensor")
    compare("context", CONTEXT, tmp_path / "context")


@pytest.mark.slow  # a pair of processes
def test_one_process_goes_on_with_updates_that_two_have_held(tmp_path: Path) -> None:
    run_file("together.py", str(tmp_path / "two"), "tensor", "handed=lora-adamw-whole-stop")
    together.work(tmp_path / "two" / "handed", "lora-adamw-whole")
    together.work(tmp_path / "one", "lora-adamw-whole")
    same(tmp_path / "one", tmp_path / "two" / "handed")


@pytest.mark.slow  # a pair of processes for each
@pytest.mark.parametrize("more", [["--lora"], ["--full"], ["--lora", "--base", "q4_0"]], ids=["updates", "all weights", "blocks"])
def test_the_command_writes_the_same_from_two_processes_as_from_one(more: list[str], tmp_path: Path) -> None:
    import numpy as np
    from click.testing import CliRunner

    import herd
    from cli.chat_model import write
    from herd.cli.main import main
    from training.programs import _run

    base, data = write(tmp_path / "base"), tmp_path / "chats.jsonl"
    chats = [{"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": "zz" + one}]} for one in "abcdefghij"]
    data.write_text("".join(json.dumps(each) + "\n" for each in chats))
    few = ["--steps", "3", "--batch", "4", "--held-out", "2", "--dtype", "float32", "--lr", "0.01", *more]
    words = ["tune", "sft", "--model", str(base), "--data", str(data), *few]
    assert CliRunner().invoke(main, [*words, "--out", str(tmp_path / "one")], catch_exceptions=False).exit_code == 0
    ended = _run(["-m", "herd", *words, "--out", str(tmp_path / "two"), "--set", "parallel.tensor=2"])
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    torch.testing.assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    with herd.load(tmp_path / "one", backend="reference") as one, herd.load(tmp_path / "two", backend="reference") as two:
        tokens = list(range(20))
        assert np.abs(one.logits(tokens) - two.logits(tokens)).max() < 1e-3


def test_what_recipes_do_not_share_is_refused_by_name() -> None:
    needed = {"model": "m", "data": ("d",)}
    with pytest.raises(UsageError, match="processes draw apart"):
        student = StudentSettings(method="lora", lora=Lora(dropout=0.1))
        SftSettings(**needed, student=student, parallel=ParallelSettings(context=2))  # type: ignore[arg-type]
