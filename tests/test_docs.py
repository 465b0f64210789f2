"""The docs are true: their commands exist and run, their Python runs, their links lead somewhere, their tables are current.

Fenced blocks of README.md and docs/how-to/ marked `sh` are shell lines, run one by one from the root of the checkout; those
marked `python` are run as one program a page. A block under `<!-- not run: reason -->` is only checked for form. Running needs
the default model, so it is marked `network`; that every command and option exists is checked without.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cli.running import parses

ROOT = Path(__file__).resolve().parent.parent
EXECUTED = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
ALL_PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#|mailto:)(?P<target>[^)#\s]+)")
LIMIT_S = 300


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. `reason`: why it is not run, if it is not."""

    page: str
    language: str
    text: str
    reason: str | None

    @property
    def lines(self) -> list[str]:
        """Shell lines; a line that ends with a backslash goes on."""
        joined = self.text.replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def blocks(language: str) -> list[Block]:
    found = []
    for page in EXECUTED:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if match["language"] == language:
                found.append(Block(str(page.relative_to(ROOT)), language, match["text"], match["reason"]))
    return found


def shell_lines() -> Iterator[tuple[Block, str]]:
    for block in blocks("sh"):
        yield from ((block, line) for line in block.lines)


def runnable() -> list[tuple[str, str]]:
    """Shell lines that are run. `scripts/test` is what runs this test, so it is not run by it."""
    return [(block.page, line) for block, line in shell_lines() if block.reason is None and line.split()[0] != "scripts/test"]


def test_the_two_commands_of_the_readme_are_there() -> None:
    lines = [line.split()[0] for block, line in shell_lines() if block.page == "README.md"]
    assert "scripts/try" in lines and "scripts/test" in lines


@pytest.mark.parametrize(("block", "line"), [pytest.param(b, s, id=f"{b.page}: {s[:60]}") for b, s in shell_lines()])
def test_every_command_in_the_docs_exists(block: Block, line: str) -> None:
    """Programs, subcommands and options are known; arguments are accepted."""
    for command in re.split(r"\s(?:\||&&|<|>)\s", line):
        words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if words[0] == "herd":
            parses(words[1:])
        elif "/" in words[0]:
            assert os.access(ROOT / words[0], os.X_OK), f"{block.page}: {words[0]} is not a program of this checkout"


@pytest.mark.parametrize("block", [pytest.param(b, id=f"{b.page}-{number}") for number, b in enumerate(blocks("python"))])
def test_python_in_the_docs_is_python(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.network
@pytest.mark.parametrize(("page", "line"), [pytest.param(p, s, id=f"{p}: {s[:60]}") for p, s in runnable()])
def test_a_command_in_the_docs_runs(page: str, line: str) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{page}: {line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.network
@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python") if block.reason is None}))
def test_the_python_of_a_page_runs(page: str, tmp_path: Path) -> None:
    program = "\n".join(block.text for block in blocks("python") if block.page == page and block.reason is None)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, f"{page}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in ALL_PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    missing = [match["target"] for match in LINK.finditer(text) if not (page.parent / match["target"]).exists()]
    assert not missing, missing


def test_the_reference_is_what_the_code_says() -> None:
    changed = script("docs/make_reference.py").stale()
    assert not changed, f"{[path.name for path in changed]} are stale; run scripts/docs"


def test_figures_in_the_docs_come_from_the_newest_results() -> None:
    assert not script("benchmarks/make_tables.py").stale()


def script(path: str) -> Any:
    """A script of this checkout as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
