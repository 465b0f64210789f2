"""Where herd keeps what it fetches: `HERD_HOME`, else the cache folder that the platform prescribes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from herd.errors import UsageError


def home() -> Path:
    """The folder of everything that herd stores. It need not exist yet."""
    if chosen := os.environ.get("HERD_HOME"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        return _from("LOCALAPPDATA") / "herd"
    if sys.platform == "darwin":
        return _from("HOME") / "Library" / "Caches" / "herd"
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules say that a relative path is to be ignored.
    return Path(cache) / "herd" if os.path.isabs(cache) else _from("HOME") / ".cache" / "herd"


def models_folder() -> Path:
    """The folder that models are pulled into. It need not exist yet."""
    return home() / "models"


def cache_folder() -> Path:
    """The folder of what can be worked out again (see `kept.py`). It need not exist yet."""
    return home() / "cache"


def _from(variable: str) -> Path:
    value = os.environ.get(variable, "")
    if not os.path.isabs(value):
        raise UsageError(
            f"There is no folder to keep models in: the environment variable {variable} is not set to an absolute path. "
            "Set HERD_HOME to a folder."
        )
    return Path(value)
