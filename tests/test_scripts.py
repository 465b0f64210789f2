"""The scripts of a clone say in one sentence what a computer lacks, before they install anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
Refusal = Callable[..., str]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts need bash")


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(params=["try", "test"])
def refusal(request: pytest.FixtureRequest, tmp_path: Path) -> Refusal:
    """Runs the script with further settings and returns the one line that it ends with."""

    def run(**settings: str) -> str:
        environment = {**os.environ, "HERD_VENV": str(tmp_path / "venv"), "HERD_PYTHON": sys.executable, **settings}
        done = subprocess.run(
            [ROOT / "scripts" / request.param],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{request.param}: ") and line.endswith("."), line
        assert not (tmp_path / "venv" / "herd-installed").exists()
        return line

    return run


@pytest.fixture
def environment_there(tmp_path: Path) -> None:
    """An environment in which nothing of herd was installed: the python that runs this test, under the name that is expected."""
    program(tmp_path / "venv" / "bin" / "python", f'exec "{sys.executable}" "$@"')


def test_a_python_that_is_too_old_is_named_as_what_is_missing(refusal: Refusal, tmp_path: Path) -> None:
    # What every version before 3.11 answers to the script's question.
    old = program(tmp_path / "python3.10", "exit 1")
    assert "Python 3.11 or newer is needed and none was found" in refusal(HERD_PYTHON=str(old))
    assert not (tmp_path / "venv").exists()


def test_too_little_room_on_the_disk_is_told_in_megabytes(refusal: Refusal, tmp_path: Path) -> None:
    program(tmp_path / "bin" / "df", "echo Filesystem 1M-blocks Used Available Capacity Mounted\necho disk 100000 99988 12 99% /")
    line = refusal(PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert "000 MB of free disk space are needed here and 12 MB are left" in line
    assert not (tmp_path / "venv").exists()


@pytest.mark.usefixtures("environment_there")
def test_a_missing_compiler_is_named_with_the_command_that_installs_one(refusal: Refusal) -> None:
    line = refusal(CXX="a-compiler-that-is-not-here")
    assert "a C++20 compiler is needed and none was found; install one" in line and "apt-get install g++" in line


@pytest.mark.usefixtures("environment_there")
def test_a_package_index_out_of_reach_is_told_before_anything_is_installed(refusal: Refusal, tmp_path: Path) -> None:
    compiler = program(tmp_path / "c++", "cat >/dev/null")
    assert "the package index that pip is set up with cannot be reached" in refusal(CXX=str(compiler), PIP_NO_INDEX="1")
