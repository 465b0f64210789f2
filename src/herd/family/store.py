"""What is on this machine: the models folder, what lies in it, and how something leaves it.

models/NAME/               one complete model: a GGUF file or a Hugging Face folder, and source.json (where it is from, and the
                           SHA-256 of each file for which its hub announced one)
models/.partial/NAME/      what is still on its way; moved to models/NAME when complete and checked
models/.locks/NAME         who is working on NAME right now
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from herd.errors import FileProblem, UsageError
from herd.files import file_lock, models_folder, read_json
from herd.files.kept import forget
from herd.files.writing import cannot_write, sync_folder
from herd.records import dataclass

SOURCE_FILE = "source.json"
EYES = "mmproj-"
"""How the name of the second file of a model begins, which is none of its own."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A model that is here. `path` is what to load: the GGUF file, or the folder. `source` is where it came from, if known."""

    name: str
    path: Path
    num_bytes: int
    source: str | None


def installed() -> list[Installed]:
    """Everything in the models folder, by name."""
    folder = models_folder()
    names = sorted(entry.name for entry in folder.iterdir() if _is_model(entry)) if folder.is_dir() else []
    return [found for name in names if (found := locate(name)) is not None]


def locate(name: str) -> Installed | None:
    """The model of this name, if it is here. A name is never a path."""
    if not _is_plain(name):
        return None
    entry = models_folder() / name
    if not _is_model(entry):
        return None
    if entry.is_file():
        return Installed(name, entry, entry.stat().st_size, None)
    files = [path for path in entry.rglob("*") if path.is_file()]
    ggufs = [path for path in files if path.suffix == ".gguf" and path.parent == entry and not path.name.startswith(EYES)]
    path = ggufs[0] if len(ggufs) == 1 else entry
    return Installed(name, path, sum(file.stat().st_size for file in files), _source(entry))


def remove(name: str, *, on_wait: Callable[[], None]) -> int:
    """Deletes a model from the models folder, and only there, and what the cache keeps of it; the bytes that were freed.

    `UsageError` if it is not here.

    The model disappears at once (a rename), then its files are deleted: a half-deleted model is never seen.
    """
    import shutil

    _required(name)
    entry = models_folder() / name
    with guarded(name, on_wait=on_wait):
        found = _required(name)  # While this process waited, another one may have removed or replaced it.
        trash = partial_folder(name)
        shutil.rmtree(trash, ignore_errors=True)
        freed = forget(entry)
        if entry.is_symlink():
            entry.unlink()
            return freed
        if entry.is_file():
            entry.unlink()
            return freed + found.num_bytes
        trash.parent.mkdir(parents=True, exist_ok=True)
        os.rename(entry, trash)
        shutil.rmtree(trash)
    return freed + found.num_bytes


def _required(name: str) -> Installed:
    found = locate(name)
    if found is None:
        raise UsageError(f"{name!r:.80} is not in {models_folder()}. `herd models` lists what is; files elsewhere are yours to delete.")
    return found


def guarded(name: str, *, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
    """Holds the lock of one model; `on_wait` is called once if another process has it."""
    locks = models_folder() / ".locks"
    make_folder(locks)
    return file_lock(locks / name, on_wait)


def make_folder(folder: Path) -> None:
    """Makes a folder of ours. `UsageError` where that is not allowed: the cure is another HERD_HOME."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({error.strerror}). Set HERD_HOME to a folder that can be written.") from error


def partial_folder(name: str) -> Path:
    """Where a model lives while it is not complete."""
    return models_folder() / ".partial" / name


def publish(name: str, folder: Path, source: str, announced: Mapping[str, str]) -> None:
    """Makes a complete `folder` the model `name`: one rename, then on disk for good.

    announced: file name -> the SHA-256 that its publisher gave for it; kept beside `source`.
    """
    note = folder / SOURCE_FILE
    try:
        note.write_text(json.dumps({"source": source, "sha256": dict(announced)}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(note, error) from error
    target = models_folder() / name
    try:
        os.rename(folder, target)
    except OSError as error:
        raise FileProblem(f"{target} could not be made ({error.strerror}). Remove what is in its place, then pull again.") from error
    sync_folder(target.parent)


def announced_sums(folder: Path) -> dict[str, str]:
    """What `publish` kept of a pulled folder: file name -> SHA-256. Empty for folders that were not pulled.

    `FileProblem` for a note that is damaged, or that names files outside of the folder.
    """
    note = folder / SOURCE_FILE
    if not note.is_file():
        return {}
    listed = read_json(note).get("sha256", {})
    if not isinstance(listed, dict) or not all(_is_plain(name) and isinstance(value, str) for name, value in listed.items()):
        raise FileProblem(f"{note}: sha256 is no list of the folder's files. Remove the model and pull it again.")
    return listed


def _is_plain(name: str) -> bool:
    """Whether `name` is one visible component of a path and nothing else."""
    return bool(name) and not name.startswith(".") and len(name) <= 200 and not any(c in name for c in "/\\:\0") and name.isprintable()


def _is_model(entry: Path) -> bool:
    if entry.name.startswith((".", EYES)):
        return False
    return entry.is_dir() or (entry.is_file() and entry.suffix in (".gguf", ".bin"))


def _source(entry: Path) -> str | None:
    try:
        value = json.loads((entry / SOURCE_FILE).read_bytes()).get("source")
    except (OSError, ValueError, AttributeError):
        return None
    return str(value) if value is not None else None
