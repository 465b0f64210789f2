"""Running the commands: in this process with click's runner, and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result

import herd
from herd.cli.main import main

STORIES = str(Path(__file__).resolve().parent.parent / "data" / "stories260K" / "stories260K.bin")
SOURCES = str(Path(herd.__file__).parent.parent)
REFERENCE = ("--backend", "reference")
"""The oracle: slow and always there, and fast enough for a model of 260,000 parameters."""


def invoke(*words: str, typed: str | bytes | None = None) -> Result:
    """The result of `herd words`, run in this process."""
    return CliRunner().invoke(main, list(words), input=typed, prog_name="herd")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "herd", *words]


def environment(**changes: str) -> dict[str, str]:
    """What a process of its own needs to find the package under test, with a little more or other."""
    return {**os.environ, "PYTHONPATH": SOURCES, "PYTHONWARNINGS": "error", **changes}


def process(*words: str, typed: bytes = b"", **settings: Any) -> subprocess.CompletedProcess[bytes]:
    """The result of `herd words` as a process, with `typed` piped in."""
    settings.setdefault("env", environment())
    return subprocess.run(command(*words), input=typed, capture_output=True, timeout=120, check=False, **settings)


def parses(words: list[str]) -> None:
    """Walks to the subcommand of `herd words` and lets it parse them, without running anything."""
    found: click.Command = main
    rest = list(words)
    while isinstance(found, click.Group) and rest:
        word = rest.pop(0)
        if word.startswith("-"):
            assert word in {"--help", *(option for parameter in found.params for option in parameter.opts)}, f"herd has no {word}"
            continue
        below = found.get_command(click.Context(found), word)
        assert below is not None, f"herd has no command {word}"
        found = below
    if not isinstance(found, click.Group):
        found.make_context(found.name, rest, parent=click.Context(main, info_name="herd", **main.context_settings))
