"""`herd train scale`: what a budget of time or operations buys."""

from __future__ import annotations

import re
from typing import Any

import click

from herd.cli.options import Examples, offline_option
from herd.errors import UsageError

SOURCES = {"chinchilla": "fitted loss is lowest; arXiv 2404.10102", "meta": "arXiv 2407.21783"}
"""Where each rule is from."""
UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@click.command(
    cls=Examples,
    short_help="Size, tokens, batch and learning rate for a budget.",
    examples="""
    herd train scale --time 30min                     on this machine, whose speed is measured for a second
    herd train scale --operations 1e18                a budget of floating-point operations
    herd train scale --time 2d --speed 4e14           on a machine that computes so many a second
    herd train scale --time 8h --tokens-per-weight 200   a small model, trained for long
    """,
)
@click.option("--operations", type=float, metavar="X", help="The budget, in floating-point operations.")
@click.option("--time", "time_text", metavar="TIME", help="The budget as a time: 90s, 30min, 8h, 2d.")
@click.option("--speed", type=float, metavar="X", help="With --time: operations a second.  [default: measured here]")
@click.option("--rule", metavar="NAME", help="How weights and tokens share it: chinchilla or meta.  [default: chinchilla]")
@click.option("--tokens-per-weight", type=float, metavar="X", help="Instead of a rule: so many tokens for each weight.")
@click.option("--vocabulary", type=int, default=0, metavar="N", help="Tokens of the vocabulary, whose table counts too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@offline_option
def scale(operations: float | None, time_text: str | None, speed: float | None, as_json: bool, **options: Any) -> None:
    """Show how large a model a budget is best spent on, and how to train it. Where the numbers are from stands below them."""
    from dataclasses import asdict

    from herd.cli.output import print_json, print_table
    from herd.training.beginning.scaling import operations_in, suggest
    from herd.training.running.speed import measured_speed

    if (operations is None) == (time_text is None):
        raise UsageError("Give the budget, as --operations or as --time.")
    if operations is not None and speed is not None:
        raise UsageError("--speed is how fast a --time is spent; --operations says the budget by itself. Leave one of them out.")
    per_weight, rule = options["tokens_per_weight"], options["rule"]
    if per_weight is not None and rule is not None:
        raise UsageError("--rule and --tokens-per-weight both say how weights and tokens share the budget; give one of them.")
    if operations is None:
        rate = speed if speed is not None else measured_speed()
        operations = operations_in(seconds_of(str(time_text)), rate)
        if not as_json:
            click.echo(f"{rate:.3g} operations a second{'' if speed is not None else ', measured here on products of 1,024 x 1,024'}")
    found = suggest(operations, rule=rule or "chinchilla", tokens_per_weight=per_weight, vocab_size=options["vocabulary"])
    if as_json:
        print_json(asdict(found))
        return
    rows = [
        ["operations", f"{found.operations:.3g}", "6 x weights x tokens; arXiv 2001.08361"],
        ["weights", f"{found.weights:,}", "as --tokens-per-weight says" if per_weight is not None else SOURCES[rule or "chinchilla"]],
        ["tokens", f"{found.tokens:,}", f"{found.tokens / found.weights:.0f} for each weight"],
        ["a step", f"{found.batch_tokens:,} tokens", "arXiv 2401.02954, at most a hundredth of all"],
        ["steps", f"{found.steps:,}", ""],
        ["learning rate", f"{found.lr:g}", "arXiv 2401.02954, for AdamW"],
        ["shape", f"--width {found.width} --layers {found.layers}", "about 100 of width for each layer"],
    ]
    if found.loss is not None:
        rows.append(["loss", f"{found.loss:.2f}", "as fitted, nats a token on web text with 32,000 words"])
    print_table(["", "", "from"], rows)
    for note in found.notes:
        click.echo(note)


def seconds_of(text: str) -> float:
    """30min -> 1800. `UsageError` for what is no time."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d)\s*", text)
    if match is None:
        raise UsageError(f"--time is {text!r:.40}; expected a number with s, min, h or d: 90s, 30min, 8h, 2d.")
    return float(match[1]) * UNITS[match[2]]
