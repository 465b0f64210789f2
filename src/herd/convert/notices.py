"""The notice files that a licence asks for, beside what is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from herd.planner.notices import NOTICE, due, release_at

TEXTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "ACCEPTABLE_USE*", "README*", "MODEL_CARD*")
MAX_TEXT_BYTES = 1 << 20


def with_notices(texts: Mapping[str, bytes], source: Path, notes: list[str]) -> dict[str, bytes]:
    """The texts that come along from the model at `source`, and what its licence wants besides; `notes` get what is missing."""
    said = next((data for name, data in texts.items() if name.upper().startswith(NOTICE)), b"")
    found = due(release_at(source), texts.keys(), said)
    notes += found.warnings
    return {**texts, **found.files}


def write_notices(folder: Path, source: Path) -> tuple[str, ...]:
    """Writes the licence texts of the model at `source` (a file or folder) and the Notice file that its licence asks for into a folder
    that holds something made from it, an adapter or a model. Files that are there already stay. Returns what to tell the user."""
    beside = source if source.is_dir() else source.parent
    texts = {
        path.name: path.read_bytes()
        for pattern in TEXTS
        if not pattern.startswith(("README", "MODEL_CARD"))
        for path in sorted(beside.glob(pattern))
        if path.is_file() and path.stat().st_size <= MAX_TEXT_BYTES
    }
    notes: list[str] = []
    for name, data in with_notices(texts, source, notes).items():
        if not (folder / name).exists():
            (folder / name).write_bytes(data)
    return tuple(notes)
