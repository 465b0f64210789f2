"""Processes that trained together end in peace, however late gloo's worker gets Python's lock to let go of the last tensors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

ROOT = Path(__file__).resolve().parents[2]
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


def ended(*arguments: str) -> list[tuple[int, str]]:
    """How two processes of the program ended, and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], env={**os.environ, **names, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, text[-2000:]) for process, text in zip(processes, said, strict=True)]


def test_no_worker_holds_a_tensor_when_processes_leave() -> None:
    assert [code for code, _ in ended()] == [0, 0]


@pytest.mark.slow  # another pair that imports torch
def test_processes_that_fail_together_end_with_their_own_status() -> None:
    assert [code for code, _ in ended("fails")] == [7, 7]
