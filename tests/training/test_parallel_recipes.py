"""Every recipe comes to the same with two processes as with one: each takes its packs, and its prompts where answers are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
import torch

from herd.errors import UsageError
from herd.training.company import ALONE, Alone, apart, by_the_first
from training import together
from training.test_parallel import key, learned, losses, run_two

CASES = (
    "sft-adamw-whole",
    "dpo-adamw-divided",
    "kto-adamw-whole",
    "reward-adamw-divided",
    "distill-adamw-divided",
    "onpolicy-adamw-whole",
    "grpo again-adamw-whole",
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of what one process came to, folder of what two did)."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run_two(two, *CASES)
    for case in CASES:
        if not (one / key(case)).exists():
            together.work(one / key(case), case)
    return one, two


@pytest.mark.slow  # half a minute of two processes; test_parallel.py shows the same of supervised fine-tuning each time
@pytest.mark.parametrize("case", CASES)
def test_a_recipe_comes_to_the_same_with_two_processes(case: str, both: tuple[Path, Path]) -> None:
    one, two = both[0] / key(case), both[1] / case
    assert len(losses(one)) == 5
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-6, atol=1e-8)
    ours, theirs = learned(two), learned(one)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_items_that_are_worked_on_apart_come_back_in_their_order() -> None:
    class Second(Alone):
        def exchanged(self, value: object) -> list[object]:
            return [["A", "C", "E"], value]

    assert apart(Second(1, 2), "abcde", lambda mine: [each.upper() for each in mine]) == list("ABCDE")
    assert apart(ALONE, "ab", lambda mine: list(mine)) == ["a", "b"]


def test_the_others_hear_that_the_first_process_could_not() -> None:
    class Other(Alone):
        def wait_for_first(self) -> bool:
            return False

    with pytest.raises(UsageError, match="first process could not"):
        by_the_first(Other(1, 2), lambda: 1, "the folder")
    assert by_the_first(ALONE, lambda: 1, "the folder") == 1
