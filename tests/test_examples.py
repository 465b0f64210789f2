"""Scripts of `examples/` type commands that herd has: each option of them is known, and what they say makes settings of a run."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.running import invoke, parses

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
UNKNOWN, WITHIN = "50", "1"
"""What stands for what a script only knows when it runs (a number, a file, a name): as a word of its own, and within one."""
RECIPES = ("tune_distill", "tune_grpo", "tune_preferences", "tune_sft")


def typed() -> Iterator[Any]:
    """The words of each `command(...)` of an example."""
    for path in sorted(EXAMPLES.glob("*.py")):
        calls = [each for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(each, ast.Call)]
        for number, call in enumerate(each for each in calls if isinstance(each.func, ast.Name) and each.func.id == "command"):
            yield pytest.param([word for each in call.args for word in words(each)], id=f"{path.name}-{number}")


def words(node: ast.expr, unknown: str = UNKNOWN) -> Iterator[str]:
    """What an argument is when it is typed."""
    match node:
        case ast.Constant():
            yield str(node.value)
        case ast.Starred(value=ast.Tuple(elts=several)):
            for each in several:
                yield from words(each)
        case ast.JoinedStr():
            yield "".join(word for each in node.values for word in words(each, WITHIN))
        case _:
            yield unknown


COMMANDS = list(typed())


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_types_options_that_there_are(command: list[str]) -> None:
    parses(command)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.values[0][:2] != ["tune", "merge"]])
def test_what_an_example_types_makes_settings_of_a_run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
    begun: list[str] = []
    for module in RECIPES:
        monkeypatch.setattr(f"herd.cli.{module}.carry_out", lambda name, *rest: begun.append(name))
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    assert begun == [command[1]]


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_everything_that_an_example_imports_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / name), run_name="imported")


def test_every_script_that_types_commands_is_looked_at() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py") if "\nfrom measuring import" in path.read_text(encoding="utf-8")}
    with_commands = {each.id.rpartition("-")[0] for each in COMMANDS if each.id is not None}
    assert {"sft_intents.py", "grpo_sums.py", "dpo_short_answers.py", "distill_layers.py"} <= with_commands <= scripts
