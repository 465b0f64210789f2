"""Two processes come to what one comes to, with whole weights and with divided ones, and go on from each other's checkpoints.

In float64: AdamW makes a full step of any gradient, however small, so in float32 the order of sums would show in single weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
import torch
from torch import Tensor

from herd.checkpoints.safetensors import read_safetensors
from herd.files import MappedFile
from herd.training.company import ALONE, Alone, shared
from herd.training.running.runs import State, read_log, state_of
from herd.training.running.saving import complete
from training import together
from training.programs import run_file

CASES = ("full-adamw-whole", "full-adamw-divided", "full-muon-divided", "lora-adamw-divided", "lora-adamw-whole")


def run_two(folder: Path, *cases: str) -> None:
    """Two processes over gloo, as torchrun starts them."""
    run_file("together.py", str(folder), *cases)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of what one process came to, folder of what two did)."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    stopped = "full-adamw-divided-stop"
    run_two(two, *CASES, f"stopped={stopped}", "stopped=full-adamw-divided", f"handed={stopped}")
    for case in CASES:
        if not (one / key(case)).exists():
            together.work(one / key(case), case)
    return one, two


def key(case: str) -> str:
    return case.rpartition("-")[0]


def losses(folder: Path) -> list[float]:
    return [value for line in read_log(folder / "metrics.jsonl") for name, value in line.items() if name.endswith("loss")]


def learned(folder: Path) -> dict[str, Tensor]:
    file = MappedFile(folder / "learned.safetensors")
    return {
        name: torch.frombuffer(bytearray(file.view[entry.offset : entry.offset + entry.num_bytes]), dtype=torch.float64).reshape(
            entry.shape
        )
        for name, entry in read_safetensors(file).items()
    }


@pytest.mark.parametrize("case", CASES)
def test_two_processes_come_to_what_one_comes_to(case: str, both: tuple[Path, Path]) -> None:
    one, two = both[0] / key(case), both[1] / case
    assert len(losses(one)) == 9
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-8, atol=1e-9)
    ours, theirs = learned(two), learned(one)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_each_process_keeps_its_rows_and_writes_them_itself(both: tuple[Path, Path]) -> None:
    newest = complete(both[1] / "full-adamw-divided" / "checkpoints")[-1]
    assert {name for name in newest.files if name.startswith("weights")} == {f"weights-0000{n}-of-00002.safetensors" for n in (1, 2)}
    sizes = [newest.files[f"weights-0000{n}-of-00002.safetensors"][0] for n in (1, 2)]
    assert abs(sizes[0] - sizes[1]) < 0.2 * sizes[0]
    whole = complete(both[1] / "full-adamw-whole" / "checkpoints")[-1].read()
    read = newest.read()
    assert {name: each.shape for name, each in read["weights"].items()} == {name: each.shape for name, each in whole["weights"].items()}


def test_a_stopped_run_of_two_processes_goes_on_exactly(both: tuple[Path, Path]) -> None:
    whole, stopped = both[1] / "full-adamw-divided", both[1] / "stopped"
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert all(torch.equal(value, learned(whole)[name]) for name, value in learned(stopped).items())
    assert state_of(stopped) is State.FINISHED


def test_one_process_goes_on_with_what_two_have_saved(both: tuple[Path, Path]) -> None:
    folder = both[1] / "handed"
    assert state_of(folder) is State.STOPPED and len(losses(folder)) == 5
    together.work(folder, "full-adamw-whole")
    one = both[0] / "full-adamw"
    torch.testing.assert_close(losses(folder), losses(one), rtol=1e-8, atol=1e-9)


def test_items_that_do_not_divide_are_computed_by_all_and_count_once() -> None:
    items = "abcde"
    parts = [list(shared(Alone(index, 2), items)) for index in range(2)]
    assert parts[0] == [(0, "a", 1.0), (2, "c", 1.0), (4, "e", 1.0)]
    assert parts[1] == [(1, "b", 1.0), (3, "d", 1.0), (5, "a", 0.0)]
    assert [counts for _, _, counts in shared(ALONE, items)] == [1.0] * 5
