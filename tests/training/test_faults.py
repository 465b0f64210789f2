"""What kills a run, empties the disk's cache or fills the disk: the run that goes on ends with the bits of one that nothing befell."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("faults_program.py")


def outcomes(folder: Path, *cases: str) -> list[Any]:
    """What `faults_program` found, for each of its arguments."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *cases], env=environment(), capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def test_a_run_goes_on_exactly_after_some_file_operations_failed_and_some_kills(tmp_path: Path) -> None:
    """kill: SIGKILL, in the middle of a write. power: what was not synced is lost as well. full: the disk has no room."""
    found = outcomes(tmp_path, "kill=79", "power=73", "full=71", "moments=3")
    assert [case["kind"] for case in found] == ["kill", "power", "full", "moments"]
    assert [case for case in found if case["wrong"] or case["cases"] < 2] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "power", "full"])
def test_a_run_goes_on_exactly_after_any_file_operation_failed(kind: str, tmp_path: Path) -> None:
    (found,) = outcomes(tmp_path, f"{kind}=1")
    assert found["cases"] == found["operations"] > 150 and found["wrong"] == []


@pytest.mark.slow
def test_a_run_goes_on_exactly_after_a_hundred_kills_at_random_moments(tmp_path: Path) -> None:
    (found,) = outcomes(tmp_path, "moments=100")
    assert found["cases"] >= 100 and found["wrong"] == []


def test_a_limit_of_the_system_on_the_size_of_files_leaves_what_was_saved(tmp_path: Path) -> None:
    """A real refusal of the system, in the middle of a file: RLIMIT_FSIZE."""
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom herd.errors import CapacityError\nfrom training.faults import Lines, run\n"
        "import training.faults as faults\n"
        "def told(seen):\n"
        "    if seen.step == 4: resource.setrlimit(resource.RLIMIT_FSIZE, (10000, resource.RLIM_INFINITY))\n"
        "try:\n    run(Path(sys.argv[1]), told, recipe=Lines(width=64))\nexcept CapacityError as error:\n    print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "run(Path(sys.argv[1]), recipe=Lines(width=64))\nrun(Path(sys.argv[2]), recipe=Lines(width=64))\n"
        "assert faults.result(Path(sys.argv[1])) == faults.result(Path(sys.argv[2]))\n"
    )
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("this process may not lift a limit on the size of files again")
    folders = [str(tmp_path / name) for name in ("limited", "whole")]
    done = subprocess.run([sys.executable, "-c", program, *folders], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step-000004: the checkpoint takes" in done.stdout and "File too large" in done.stdout
