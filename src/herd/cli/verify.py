"""`herd verify`: whether a model's files are whole and belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from herd.cli.options import Examples, offline_option
from herd.errors import FileProblem

if TYPE_CHECKING:
    from herd.convert import Verdict


@click.command(
    cls=Examples,
    short_help="Check that a model is whole.",
    examples="""
    herd verify smollm2-135m-instruct
    herd verify ./model-folder --json
    """,
)
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def verify(model: str, as_json: bool) -> int:
    """Check MODEL as a whole: files, tensors, values, tokenizer, chat format, and a small numerical test. Reads all of it.

    Ends with a verdict; exit code 3 if something is wrong.
    """
    from herd.cli.output import fetching, print_json
    from herd.convert import verify as check

    with fetching() as progress:
        verdict = check(model, progress=progress)
    if as_json:
        print_json(_as_json(verdict))
    else:
        _print(verdict)
    return 0 if verdict.is_good else FileProblem.exit_code


def _as_json(verdict: Verdict) -> dict[str, object]:
    checks = [{"check": each.check, "outcome": each.outcome.value, "text": each.text} for each in verdict.findings]
    return {"name": verdict.name, "path": verdict.path, "is_good": verdict.is_good, "summary": verdict.summary, "checks": checks}


def _print(verdict: Verdict) -> None:
    click.echo(f"{_printable(verdict.name)}  {_printable(verdict.path)}")
    for each in verdict.findings:
        first, *more = map(_printable, each.text.splitlines())
        click.echo(f"  {each.outcome.value.ljust(8)} {each.check.ljust(12)} {first}")
        for line in more:
            click.echo(f"  {' ' * 22}{line}")
    click.echo(verdict.summary)


def _printable(text: str) -> str:
    """Names in files are no place for what moves a cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
