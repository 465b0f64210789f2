"""The folder of a finished run of training, seen as a model: an adapter over the model that it began with, or a model of its own.

NAME/adapter/    adapter_config.json names the base model
NAME/model/      a whole model; model.gguf if it was learned for four bits
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from herd.errors import FileProblem
from herd.files import read_json
from herd.files.text import read_text
from herd.records import dataclass

CONFIG = "adapter_config.json"
ADAPTER, MODEL, MODEL_FILE = "adapter", "model", "model.gguf"
RUN_FILES = ("config.toml", "facts.json")
CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Trained:
    """`model` is a name or a path, to be found like any other; `adapter` the folder of what was learned over it."""

    model: str
    adapter: Path | None = None


def trained_in(folder: Path) -> Trained | None:
    """What the folder of a run, or of an adapter, stands for; None for other folders and for files. `FileProblem` for a run that has
    nothing to show yet, and for an adapter that does not say what it belongs to."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    adapter = adapter_in(folder)
    if adapter is not None:
        return Trained(_base_of(adapter), adapter)
    for name in (MODEL, MODEL_FILE):
        if (folder / name).exists():
            return Trained(str(folder / name))
    if all((folder / name).is_file() for name in RUN_FILES):
        raise FileProblem(
            f"{folder}: is a run of training that has not come to its end, so there is no model in it yet. Go on with --resume."
        )
    return None


def format_taught(folder: Path) -> str | None:
    """The chat format that a run was told to teach (--chat-format), where its model has none of its own. None for all other folders."""
    if not all((folder / name).is_file() for name in RUN_FILES):
        return None
    try:
        found = tomllib.loads(read_text(folder / RUN_FILES[0], CONFIG_BYTES)).get("chat_format")
    except (ValueError, RecursionError) as problem:
        raise FileProblem(f"{folder / RUN_FILES[0]}: is not TOML: {problem}") from problem
    return found if isinstance(found, str) else None


def adapter_in(folder: Path) -> Path | None:
    """The folder with the adapter: `folder` itself, or the one that a run left in it."""
    return next((place for place in (folder, folder / ADAPTER) if (place / CONFIG).is_file()), None)


def _base_of(adapter: Path) -> str:
    base = read_json(adapter / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise FileProblem(f"{adapter / CONFIG}: does not say which model it belongs to. Load that model with adapter={str(adapter)!r}.")
    beside = adapter.parent / Path(base).name
    # A model that the run itself wrote moves with its folder.
    return str(beside) if Path(base).is_absolute() and not Path(base).exists() and beside.is_file() else base
