"""The notice files that a licence asks for, beside what is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from herd.convert.texts import is_card, texts_at
from herd.files import atomic_write
from herd.planner.licence import licence_of
from herd.planner.notices import NOTICE, due, licence_told, release_at

if TYPE_CHECKING:
    from herd.family.release import Release
    from herd.planner.licence_data import Licence


def with_notices(source: Path, notes: list[str]) -> dict[str, bytes]:
    """The texts that come along from the model at `source`, and what its licence wants besides; `notes` get what is missing. A name that
    says nothing leaves the texts themselves, and what the model says its licence is."""
    texts = texts_at(source)
    said = next((data for name, data in texts.files.items() if name.upper().startswith(NOTICE)), b"")
    found = due(release_at(source), texts.files.keys(), said, licence_told(texts.files, texts.licence))
    notes += [*texts.notes, *found.warnings]
    return {**texts.files, **found.files}


def write_notices(folder: Path, source: Path) -> tuple[str, ...]:
    """Writes the licence texts of the model at `source` (a file or folder) and the Notice file that its licence asks for into a folder
    that holds something made from it, an adapter or a model. Files that are there already stay. Returns what to tell the user."""
    notes: list[str] = []
    for name, data in with_notices(source, notes).items():
        if is_card(name) or (folder / name).exists():
            continue
        with atomic_write(folder / name) as file:
            file.write(data)
    return tuple(notes)


def licence_at(source: Path, release: Release | None = None) -> Licence | None:
    """The licence of the model at `source` (a file or folder): of its release, where that or the name of the file is known; else as its
    texts, its card or the file itself say. A name that somebody gave it does not hide it."""
    release = release or release_at(source)
    if release is not None:
        return licence_of(release)
    texts = texts_at(source)
    return licence_told(texts.files, texts.licence)
