"""Processes that trained together end in peace, however late gloo's worker gets Python's lock to let go of the last tensors."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from training.programs import run_program

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from herd.training.running.parallel import company

sys.setswitchinterval(1000)  # nobody is asked to hand over Python's lock: who wants it waits until somebody sleeps
with company() as (together, _):
    kept = dist.group.WORLD
    for number in range(3):
        assert together.total(float(together.index)) == 1.0
        dist.all_reduce(torch.ones(3))
    if sys.argv[1:] == ["fails"]:
        raise SystemExit(7)
"""


def test_no_worker_holds_a_tensor_when_processes_leave() -> None:
    assert [code for code, _ in run_program(PROGRAM)] == [0, 0]


@pytest.mark.slow  # another pair that imports torch
def test_processes_that_fail_together_end_with_their_own_status() -> None:
    assert [code for code, _ in run_program(PROGRAM, "fails")] == [7, 7]
