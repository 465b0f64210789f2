"""The notice files that a licence asks for, beside what is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from herd.checkpoints.gguf import read_gguf
from herd.checkpoints.gguf_keys import texts as carried_texts
from herd.files.mapped import MappedFile
from herd.planner.licence import licence_of
from herd.planner.notices import NOTICE, due, licence_told, release_at

if TYPE_CHECKING:
    from herd.family.release import Release
    from herd.planner.licence_data import Licence

TEXTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "ACCEPTABLE_USE*", "README*", "MODEL_CARD*")
CARDS = ("README", "MODEL_CARD")
GENERATION = "generation_config.json"
MAX_TEXT_BYTES = 1 << 20
_LICENCE_KEYS = ("general.license", "general.license.name")


def with_notices(texts: Mapping[str, bytes], source: Path, notes: list[str], licence: str = "") -> dict[str, bytes]:
    """The texts that come along from the model at `source`, and what its licence wants besides; `notes` get what is missing. A name that
    says nothing leaves the texts themselves, and what the model says its `licence` is."""
    said = next((data for name, data in texts.items() if name.upper().startswith(NOTICE)), b"")
    found = due(release_at(source), texts.keys(), said, licence_told(texts, licence))
    notes += found.warnings
    return {**texts, **found.files}


def write_notices(folder: Path, source: Path) -> tuple[str, ...]:
    """Writes the licence texts of the model at `source` (a file or folder) and the Notice file that its licence asks for into a folder
    that holds something made from it, an adapter or a model. Files that are there already stay. Returns what to tell the user."""
    texts, licence = _texts_of(source)
    notes: list[str] = []
    for name, data in with_notices(texts, source, notes, licence).items():
        if name.upper().startswith(CARDS) or name == GENERATION:
            continue
        if not (folder / name).exists():
            (folder / name).write_bytes(data)
    return tuple(notes)


def licence_at(source: Path, release: Release | None = None) -> Licence | None:
    """The licence of the model at `source` (a file or folder): of its release, where that or the name of the file is known; else as its
    texts, its card or the file itself say. A name that somebody gave it does not hide it."""
    release = release or release_at(source)
    return licence_told(*_texts_of(source)) if release is None else licence_of(release)


def _texts_of(source: Path) -> tuple[dict[str, bytes], str]:
    """Texts beside a model, or inside its GGUF file; and what the file says its licence is."""
    beside = source if source.is_dir() else source.parent
    texts, licence = {}, ""
    if source.is_file() and source.suffix == ".gguf":
        file = MappedFile(source)
        try:
            metadata = read_gguf(file).metadata
            texts = {name: text.encode() for name, text in carried_texts(metadata, file.name).items()}
            licence = " ".join(str(metadata[key]) for key in _LICENCE_KEYS if key in metadata)
        finally:
            file.close()
    for pattern in TEXTS:
        for path in sorted(beside.glob(pattern)):
            if path.is_file() and path.stat().st_size <= MAX_TEXT_BYTES:
                texts.setdefault(path.name, path.read_bytes())
    return texts, licence
