"""`herd keys`: who may use a server, how much, and until when. A running server notices within a second."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from herd.cli.options import Examples
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.server.keys import Key

F = TypeVar("F", bound=Callable[..., Any])
NONE = "none"
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Keyring(Examples, click.Group):
    """The commands of keys."""


def limit_options(function: F) -> F:
    """What a key may be limited by."""
    options = [
        click.option("--requests", metavar="N", help="Requests a minute; none for no limit."),
        click.option("--tokens", metavar="N", help="Tokens a minute, of prompts and answers together; none for no limit."),
        click.option("--streams", metavar="N", help="Answers at the same time; none for no limit."),
        click.option(
            "--model", multiple=True, metavar="NAME", help="Only this model, or names like llama-3*; none for all. Can be repeated."
        ),
        click.option("--expires", metavar="WHEN", help="After 30m, 12h, 7d or 4w, or on 2030-01-31; none for never."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def file_option(function: F) -> F:
    return click.option(
        "--file", type=click.Path(path_type=Path, dir_okay=False), help="Where keys are kept.  [default: HERD_HOME/server/keys.json]"
    )(function)


@click.group(
    cls=Keyring,
    short_help="Say who may use a server.",
    examples="""
    herd keys create alice                                    prints the key, once
    herd keys create ci --tokens 100000 --streams 4 --expires 30d
    herd keys list
    herd keys limit alice --requests 60 --model "llama-3*"
    herd keys revoke alice
    """,
)
def keys() -> None:
    """Create, list, limit and revoke the keys of `herd serve`. A server that runs notices within a second."""


@keys.command(cls=Examples, short_help="Make a key.", examples="herd keys create alice --tokens 100000 --expires 30d")
@click.argument("name")
@limit_options
@file_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def create(name: str, file: Path | None, as_json: bool, **limits: Any) -> None:
    """Make a key called NAME and print it. It is shown this once; kept is only a hash of it."""
    from herd.cli.output import print_json
    from herd.server.keys import create as make

    text, key = make(_place(file), name, **_limits(limits))
    if as_json:
        print_json({"key": text, **_plain(key)})
        return
    click.echo(text)
    click.echo(f"This is the key of {key.name} ({key.id}). Keep it now: it is not shown again.", err=True)


@keys.command("list", cls=Examples, short_help="List the keys.", examples="herd keys list --json")
@file_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_keys(file: Path | None, as_json: bool) -> None:
    """List names, limits and ends of all keys; never the keys."""
    from herd.cli.output import print_json
    from herd.server.keys import read_keys

    place = _place(file)
    found = read_keys(place) if place.exists() else []
    if as_json:
        print_json({"keys": [_plain(key) for key in found]})
        return
    if not found:
        click.echo(f"There are no keys in {place}. Make one: herd keys create NAME")
        return
    rows = [("NAME", "ID", "CREATED", "EXPIRES", "REQUESTS/MIN", "TOKENS/MIN", "STREAMS", "MODELS"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command(cls=Examples, short_help="Change what a key may do.", examples="herd keys limit alice --requests 60 --tokens none")
@click.argument("name")
@limit_options
@file_option
def limit(name: str, file: Path | None, **limits: Any) -> None:
    """Change the limits of the key NAME (or its id). What is not named stays as it is."""
    from herd.server.keys import limit as change

    changes = _limits(limits)
    if not changes:
        raise UsageError("Nothing is to be changed. Name a limit: --requests, --tokens, --streams, --model or --expires.")
    key = change(_place(file), name, **changes)
    click.echo(f"{key.name} ({key.id}): {_told(key)}")


@keys.command(cls=Examples, short_help="Take a key away.", examples="herd keys revoke alice")
@click.argument("name")
@file_option
def revoke(name: str, file: Path | None) -> None:
    """Take the key NAME (or its id) away. A server that runs refuses it within a second."""
    from herd.server.keys import revoke as remove

    key = remove(_place(file), name)
    click.echo(f"{key.name} ({key.id}) is revoked.")


def _place(file: Path | None) -> Path:
    from herd.server.keys import keys_file

    return file or keys_file()


def _limits(given: dict[str, Any]) -> dict[str, Any]:
    """The limits that were named, as fields of a key."""
    found: dict[str, Any] = {}
    for option, field in (("requests", "requests_per_minute"), ("tokens", "tokens_per_minute"), ("streams", "streams")):
        if (text := given[option]) is not None:
            found[field] = _count(option, text)
    if models := given["model"]:
        found["models"] = () if models == (NONE,) else tuple(models)
    if (text := given["expires"]) is not None:
        found["expires"] = _when(text)
    return found


def _count(option: str, text: str) -> int | None:
    if text.lower() == NONE:
        return None
    from herd.planner.units import count

    try:
        found = count(text, f"--{option}")
    except UsageError:
        found = 0
    if not 0 < found <= 2**40:
        raise UsageError(f"--{option} is {text!r:.40}; expected a whole number above 0, such as 60 or 10k, or none.")
    return found


def _when(text: str) -> int | None:
    """Seconds since 1970 of a moment that is said as a time from now, or as a day."""
    if text.lower() == NONE:
        return None
    if found := re.fullmatch(r"(\d{1,5})([mhdw])", text):
        return int((datetime.now(UTC) + timedelta(**{_UNITS[found[2]]: int(found[1])})).timestamp())
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(f"--expires is {text!r:.40}; expected a time such as 12h or 30d, a day such as 2030-01-31, or none.") from None
    if day <= datetime.now(UTC):
        raise UsageError(f"--expires is {text}, which is over. `herd keys revoke` takes a key away.")
    return int(day.timestamp())


def _plain(key: Key) -> dict[str, Any]:
    """What may be shown of a key."""
    names = ("id", "name", "created", "expires", "requests_per_minute", "tokens_per_minute", "streams")
    return {name: getattr(key, name) for name in names} | {"models": list(key.models)}


def _row(key: Key) -> tuple[str, ...]:
    counts = (key.requests_per_minute, key.tokens_per_minute, key.streams)
    return (
        key.name,
        key.id,
        _day(key.created),
        "never" if key.expires is None else _day(key.expires),
        *map(_limit, counts),
        ", ".join(key.models) or "all",
    )


def _limit(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _told(key: Key) -> str:
    """The limits of a key in a line."""
    _, _, _, expires, requests, tokens, streams, models = _row(key)
    return f"{requests} requests and {tokens} tokens a minute, {streams} streams, models: {models}, expires: {expires}"
