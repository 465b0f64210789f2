"""`herd pull`, `herd models`, `herd remove`: how models come, what is here, and how they go."""

from __future__ import annotations

import sys
from typing import Any

import click

from herd.cli.options import Examples, offline_option
from herd.errors import UsageError


@click.command(
    cls=Examples,
    short_help="Fetch a model.",
    examples="""
    herd pull smollm2-135m-instruct                      no account needed, 98 MB
    HF_TOKEN=hf_... herd pull llama-3.2-1b-instruct      Meta's releases: accept the licence first
    """,
)
@click.argument("name")
@offline_option
def pull(name: str) -> None:
    """Fetch a model. What was interrupted goes on where it was; what arrives is checked."""
    from herd.cli.output import fetching
    from herd.family.catalogue import find
    from herd.family.pull import pull as fetch
    from herd.family.store import locate

    release = find(name)
    is_here = locate(release.name) is not None
    with fetching() as progress:
        path = fetch(release, progress=progress, on_wait=lambda: _waiting(release.name))
    click.echo(f"{release.name} {'was already here' if is_here else 'is here'}: {path}")


def _waiting(name: str) -> None:
    click.echo(f"Another process is working on {name}; waiting for it.", err=True)


@click.command(
    cls=Examples,
    short_help="List what is known, and what is here.",
    examples="""
    herd models            everything that is known, and what of it is here
    herd models --here     only what is here
    herd models --json     the same for programs
    """,
)
@click.option("--here", is_flag=True, help="Only models on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def models(here: bool, as_json: bool) -> None:
    """List the models that herd knows, and those that are on this machine."""
    from herd.cli.output import print_json, print_table
    from herd.files import models_folder

    rows = [row for row in _rows() if row["here"] or not here]
    if as_json:
        print_json({"folder": str(models_folder()), "models": rows})
        return
    if not rows:
        click.echo("No model is here yet. Fetch the default one with: herd pull smollm2-135m-instruct")
        return
    print_table(["NAME", "PARAMETERS", "CONTEXT", "LICENCE", "HERE"], [_cells(row) for row in rows])


def _rows() -> list[dict[str, Any]]:
    """One row per model: those that are here but unknown first, then the catalogue in its order."""
    from herd.family.catalogue import releases
    from herd.family.store import installed

    here = {found.name: found for found in installed()}
    known = releases()
    names = [name for name in here if name not in known] + list(known)
    rows = []
    for name in names:
        found, release = here.get(name), known.get(name)
        rows.append(
            {
                "name": name,
                "parameters": release.parameters if release else None,
                "context_length": release.context_length if release else None,
                "licence": release.licence if release else None,
                "released": release.released.isoformat() if release else None,
                "repository": release.repository if release else None,
                "gated": release.gated if release else None,
                "unavailable": release.unavailable if release else None,
                "here": found is not None,
                "path": str(found.path) if found else None,
                "bytes": found.num_bytes if found else None,
                "source": found.source if found else None,
            }
        )
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    from herd.cli.output import size

    parameters = row["parameters"]
    count = "" if parameters is None else f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"
    here = size(row["bytes"]) if row["here"] else "cannot be pulled" if row["unavailable"] else "needs a licence" if row["gated"] else ""
    context = "" if row["context_length"] is None else f"{row['context_length']:,}"
    return [row["name"], count, context, row["licence"] or "", here]


@click.command(
    cls=Examples,
    short_help="Delete a model from the models folder.",
    examples="""
    herd remove smollm2-135m-instruct          asks first
    herd remove smollm2-135m-instruct --yes    does not ask
    """,
)
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@offline_option
def remove(name: str, yes: bool) -> None:
    """Delete a model from the models folder. Files elsewhere are never touched."""
    from herd.cli.output import is_terminal, size
    from herd.family import store
    from herd.files import models_folder

    found = store.locate(name) or store.locate(name.lower())
    if found is None:
        raise UsageError(
            f"{name!r:.80} is not in {models_folder()}. `herd models --here` lists what is; files elsewhere are yours to delete."
        )
    if not yes:
        if not is_terminal(sys.stdin):
            raise UsageError(f"This would delete {found.name} ({size(found.num_bytes)}). Nobody can be asked here; say --yes.")
        if not click.confirm(f"Delete {found.name} ({size(found.num_bytes)}) from {models_folder()}?"):
            click.echo(f"{found.name} is kept.")
            return
    freed = store.remove(found.name, on_wait=lambda: _waiting(found.name))
    click.echo(f"{found.name} is gone; {size(freed)} are free again.")
