"""What a person means by the name of a model: a path, something in the models folder, or a release that can be fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from herd.errors import FileProblem, UsageError
from herd.family import store
from herd.family.progress import Progress, silent
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.family.release import Release


@dataclass(frozen=True, slots=True)
class Found:
    """What a name stands for: the file or folder, and the release if it is one that the family knows."""

    name: str
    path: Path
    release: Release | None = None


def find_model(model: str | os.PathLike[str], *, progress: Progress = silent, is_fetched: bool = True) -> Found:
    """The file or folder that `model` names.

    A name that is known but not here is fetched, unless this process is offline or `is_fetched` is False (then `UsageError`).
    A text is a path if it looks like one (a separator, or the ending of a model file), or if something of that name exists
    and no model is called so.
    """
    if not isinstance(model, str | os.PathLike):
        raise UsageError(f"model is {type(model).__name__}; expected a name or a path.")
    text = os.fspath(model)
    if not text.strip() or "\0" in text:
        raise UsageError(f"model is {text!r:.80}; expected a name, a .gguf file or a folder.")
    if isinstance(model, os.PathLike) or _looks_like_a_path(text):
        return _at_path(Path(text))
    from herd.family.catalogue import find, known

    here = store.locate(text) or store.locate(text.lower())
    if here is not None:
        return Found(here.name, here.path, known(here.name))
    if os.path.exists(text) and known(text) is None:
        return _at_path(Path(text))
    release = find(text)
    here = store.locate(release.name)
    if here is None and not is_fetched:
        raise UsageError(f"{release.name} is not on this machine. Fetch it with: herd pull {release.name}")
    if here is not None:
        return Found(release.name, here.path, release)
    from herd.family.pull import nobody_told, pull

    return Found(release.name, pull(release, progress=progress, on_wait=nobody_told), release)


def _looks_like_a_path(text: str) -> bool:
    """Whether this cannot be a name. "meta-llama/Llama-3.2-1B" is a hub id, not a path, unless such a folder exists."""
    if text.lower().endswith((".gguf", ".bin")):
        return True
    if "/" not in text and os.sep not in text:
        return False
    if os.path.exists(text):
        return True
    from herd.family.catalogue import known

    return known(text) is None


def _at_path(path: Path) -> Found:
    try:
        exists = path.exists()
    except OSError as error:
        raise FileProblem(f"{str(path)!r:.200} cannot be looked at: {error.strerror}.") from error
    if not exists:
        raise FileProblem(f"{str(path)!r:.200} does not exist. Give a .gguf file, a folder, or a name that `herd models` lists.")
    name = path.stem if path.is_file() else path.resolve().name
    return Found(name, path)
