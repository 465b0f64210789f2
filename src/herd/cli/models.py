"""`herd pull`, `herd models`, `herd remove`: how models come, what is here, and how they go."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples, offline_option
from herd.cli.pick import PICK_OPTIONS, pick_options
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.family.catalogue import Release
    from herd.family.store import Installed


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

    if _is_file(name):
        raise UsageError(f"{name!r:.80} is a file or folder and needs no fetching. Use it where it is: herd chat {name:.80}")
    release = find(name)
    is_here = locate(release.name) is not None
    with fetching() as progress:
        path = fetch(release, progress=progress, on_wait=lambda: _waiting(release.name))
    click.echo(f"{release.name} {'was already here' if is_here else 'is here'}: {path}")


def _is_file(name: str) -> bool:
    """Whether a name looks like a path to somewhere on this machine, not like a model or a hub id."""
    from herd.family.catalogue import known

    return known(name) is None and (name.startswith((".", "/", "~")) or name.lower().endswith((".gguf", ".bin", ".safetensors", ".pth")))


def _waiting(name: str) -> None:
    click.echo(f"Another process is working on {name}; waiting for it.", err=True)


@click.command(
    cls=Examples,
    short_help="List what is known, and what is here.",
    examples="""
    herd models                                  everything that is known, and what of it is here
    herd models --here                           only what is here
    herd models --takes image                    only what takes pictures
    herd models llama-4                          only names that hold this
    herd models --compare llama-3.1-8b llama-3.2-3b
    herd models --pick --task code --languages de --memory 16GiB
    herd models --json                           the same for programs
    """,
)
@click.argument("names", nargs=-1)
@click.option("--here", is_flag=True, help="Only models on this machine.")
@click.option("--takes", type=click.Choice(["text", "image", "video"]), help="Only models that take this.")
@click.option("--kind", type=click.Choice(["base", "instruct", "guard", "classifier"]), help="Only models of this kind.")
@click.option("--compare", is_flag=True, help="Set the models that are named side by side: sizes, memory, licence, scores in common.")
@pick_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def models(
    names: tuple[str, ...], here: bool, takes: str | None, kind: str | None, compare: bool, pick: bool, as_json: bool, **wishes: str | None
) -> None:
    """List the models that herd knows, and those that are on this machine."""
    from herd.cli.output import print_json, print_table
    from herd.files import models_folder

    if pick:
        from herd.cli.pick import pick as short_list

        if names or here or kind or compare:
            raise UsageError("--pick chooses among all models by what is wanted; names, --here, --kind and --compare are for the list.")
        short_list(wishes, pictures=takes in ("image", "video"), as_json=as_json)
        return
    stray = next((name for name in PICK_OPTIONS if wishes.get(name)), None)
    if stray is not None:
        raise UsageError(f"--{stray} belongs to --pick: herd models --pick --{stray} ...")
    if compare:
        from herd.cli.comparing import compare as side_by_side

        if here or takes or kind:
            raise UsageError("--compare takes names of models; --here, --takes and --kind are for the list.")
        side_by_side(names, as_json=as_json)
        return
    rows = [row for row in _rows() if (row["here"] or not here) and _is_wanted(row, names, takes, kind)]
    if as_json:
        print_json({"folder": str(models_folder()), "models": rows})
        return
    if not rows:
        click.echo(_nothing(names, here, takes, kind))
        return
    print_table(["NAME", "PARAMETERS", "CONTEXT", "TAKES", "LICENCE", "HERE"], [_cells(row) for row in rows])


def _is_wanted(row: dict[str, Any], names: tuple[str, ...], takes: str | None, kind: str | None) -> bool:
    return (
        (not names or any(name.lower() in row["name"].lower() for name in names))
        and (takes is None or takes in row["takes"])
        and (kind is None or row["kind"] == kind)
    )


def _nothing(names: tuple[str, ...], here: bool, takes: str | None, kind: str | None) -> str:
    """What to say and do where no model is left to list."""
    if names or takes or kind:
        from herd.family.catalogue import releases, suggestion

        wanted = " ".join(names)
        like = suggestion(wanted.lower(), releases()) if names else "."
        return f"No model {'here ' if here else ''}is like this{like} All are listed by: herd models"
    return "No model is here yet. Fetch the default one with: herd pull smollm2-135m-instruct"


def _rows() -> list[dict[str, Any]]:
    """One row per model: those that are here but unknown first, then the catalogue in its order."""
    from herd.family.catalogue import releases
    from herd.family.store import installed

    here = {found.name: found for found in installed()}
    known = releases()
    names = [name for name in here if name not in known] + list(known)
    return [{"name": name, **_of_release(known.get(name)), **_of_files(here.get(name))} for name in names]


def _of_release(release: Release | None) -> dict[str, Any]:
    """What the family says; for a model that it does not know, nothing."""
    return {
        "parameters": release.parameters if release else None,
        "active_parameters": release.active_parameters if release else None,
        "context_length": release.context_length if release else None,
        "kind": release.kind if release else None,
        "takes": list(release.inputs) if release else [],
        "gives": list(release.outputs) if release else [],
        "licence": release.licence if release else None,
        "released": release.released.isoformat() if release else None,
        "is_released": release.is_released if release else None,
        "repository": release.repository if release else None,
        "gated": release.gated if release else None,
        "unavailable": release.unavailable if release else None,
        "unverified": release.unverified if release else None,
    }


def _of_files(found: Installed | None) -> dict[str, Any]:
    return {
        "here": found is not None,
        "path": str(found.path) if found else None,
        "bytes": found.num_bytes if found else None,
        "source": found.source if found else None,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    from herd.planner.units import size

    parameters = row["parameters"]
    count = "" if parameters is None else f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"
    context = "" if row["context_length"] is None else f"{row['context_length']:,}"
    state = "cannot be pulled" if row["unavailable"] else "needs a licence" if row["gated"] else ""
    here = size(row["bytes"]) if row["here"] else "not released" if row["is_released"] is False else state
    return [row["name"], count, context, ", ".join(row["takes"]), row["licence"] or "", here]


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
    from herd.cli.output import is_terminal
    from herd.family import store
    from herd.files import models_folder
    from herd.planner.units import size

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
