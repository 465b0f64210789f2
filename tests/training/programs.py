"""Processes of a small program, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_program(program: str, *arguments: str) -> list[tuple[int, str]]:
    """How each process of a program's text ended, and what it said on both channels (their last 4,000 characters)."""
    return _run(["-c", program, *arguments])


def run_file(name: str, *arguments: str, count: int = 2) -> None:
    """A program beside this file, whose processes all have to end well."""
    ended = _run([str(Path(__file__).with_name(name)), *arguments], count)
    assert [code for code, _ in ended] == [0] * count, "\n".join(text for _, text in ended)


def _run(words: list[str], count: int = 2) -> list[tuple[int, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    pipes: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = [
        subprocess.Popen([sys.executable, *words], env={**os.environ, **names, "RANK": str(rank)}, text=True, **pipes)
        for rank in range(count)
    ]
    said = [process.communicate(timeout=900)[0] for process in processes]
    return [(process.returncode, text[-4000:]) for process, text in zip(processes, said, strict=True)]
