"""`herd models --pick`: a short list for what is wanted, with reasons."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from herd.planner.pick import Wish

PICK_OPTIONS = ("task", "languages", "context", "memory", "device", "region", "use")
_SHOWN = 8


def pick_options(function: Any) -> Any:
    """The wishes that --pick knows."""
    for option in reversed(
        [
            click.option("--pick", is_flag=True, help="Help to choose: a ranked short list with reasons. Asks, where nothing is said."),
            click.option("--task", metavar="NAME", help="With --pick: chat, code, infill, pictures, tune, moderation, injection."),
            click.option("--languages", metavar="LIST", help="With --pick: two letters each, with commas: de,fr."),
            click.option("--context", metavar="N", help="With --pick: tokens that it must take, such as 32k."),
            click.option("--memory", metavar="SIZE", help="With --pick: memory that there is, such as 16GiB."),
            click.option("--device", metavar="NAME", help="With --pick: what it runs on, such as rtx-4090."),
            click.option("--region", metavar="PLACE", help="With --pick: where you are: eu, eea-or-switzerland, other."),
            click.option("--use", metavar="USE", help="With --pick: internal, service, product or another use of `herd licence`."),
        ]
    ):
        function = option(function)
    return function


def pick(options: dict[str, str | None], *, pictures: bool, as_json: bool) -> None:
    """Prints the short list."""
    from herd.cli.output import is_terminal, print_json
    from herd.planner.pick import pick as choose

    if not any(options.values()) and not pictures and not as_json and is_terminal(sys.stdin):
        options, pictures = _ask()
    found = choose(_wish(options, pictures))
    if as_json:
        rows = [
            {"name": c.release.name, "format": c.format, "bytes": c.num_bytes, "tokens_per_s": c.tokens_per_s, "reasons": list(c.reasons)}
            for c in found.candidates
        ]
        print_json({"candidates": rows, "out": dict(found.out)})
        return
    for number, candidate in enumerate(found.candidates[:_SHOWN], start=1):
        click.echo(f"{number}. {candidate.release.name}")
        for reason in candidate.reasons:
            click.echo(f"     {reason}")
    if not found.candidates:
        click.echo("No model does all of this.")
    if len(found.candidates) > _SHOWN:
        click.echo(f"and {len(found.candidates) - _SHOWN} more: {', '.join(c.release.name for c in found.candidates[_SHOWN:])}")
    if found.out:
        click.echo("\nOut")
        for why, names in _by_reason(dict(found.out)).items():
            click.echo(f"  {', '.join(names)}: {why}")


def _by_reason(out: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, why in out.items():
        found.setdefault(why, []).append(name)
    return found


def _wish(options: dict[str, str | None], pictures: bool) -> Wish:
    from herd.planner import units
    from herd.planner.devices import find_device
    from herd.planner.pick import Wish

    context, memory, device = options.get("context"), options.get("memory"), options.get("device")
    languages = options.get("languages") or ""
    return Wish(
        task=(options.get("task") or "chat").strip().lower(),
        languages=tuple(dict.fromkeys(piece.strip().lower() for piece in languages.split(",") if piece.strip())),
        pictures=pictures,
        context=units.count(context, "--context") if context else None,
        memory=units.num_bytes(memory, "--memory") if memory else None,
        device=find_device(device) if device else None,
        region=options.get("region") or "other",
        use=options.get("use") or "internal",
    )


def _ask() -> tuple[dict[str, str | None], bool]:
    """A few questions; an empty answer means no wish."""
    from herd.planner.pick import TASKS

    def ask(what: str, usual: str = "") -> str | None:
        return click.prompt(what, default=usual, show_default=bool(usual)) or None

    options = {
        "task": ask(f"What for? ({', '.join(TASKS)})", "chat"),
        "languages": ask("In which languages? (two letters each, with commas; empty: any)"),
    }
    pictures = click.confirm("Does it look at pictures?", default=False)
    options["context"] = ask("How many tokens must it take at once? (such as 32k; empty: any)")
    options["memory"] = ask("How much memory is there? (such as 16GiB; empty: any)")
    options["region"] = ask("Where are you? (eu, eea-or-switzerland, other)", "other")
    options["use"] = ask("For internal use, a service or a product?", "internal")
    return options, pictures
