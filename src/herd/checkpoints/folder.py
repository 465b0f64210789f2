"""The files of a model folder, and never one outside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herd.checkpoints.config_reader import shown
from herd.errors import FileProblem
from herd.files import read_json


def inside(folder: Path, name: str, named_by: str) -> Path:
    """`folder / name` if that is a file of the folder. Separators, `..` and links that lead out are refused.

    The hub's cache keeps each file as a link from snapshots/<revision>/ into blobs/ beside it; that is inside.
    """
    if not name or name in (".", "..") or set(name) & set("/\\:\0"):
        raise FileProblem(f"{named_by}: names the file {shown(name)}; only plain names of files in {folder.name} are allowed.")
    path = folder / name
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as problem:
        raise FileProblem(f"{path}: is missing, and {named_by} needs it.") from problem
    root = folder.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(real.is_relative_to(home) for home in homes):
        raise FileProblem(f"{path}: is a link that leads out of the folder, to {real}. Copy the file into the folder.")
    return path


def optional_json(folder: Path, name: str) -> dict[str, Any]:
    """What the JSON file `name` says, or nothing if the folder has none."""
    if not (folder / name).exists():
        return {}
    return read_json(inside(folder, name, folder.name))
