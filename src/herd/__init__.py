"""herd: the home of the Llama family in Python.

    model = herd.load("smollm2-135m-instruct")
    print(model.generate("Once upon a time", max_tokens=32).text)

Names are looked up when they are first used, so that `import herd` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from herd.errors import CapacityError, FileProblem, HerdError, ProviderError, UsageError
from herd.version import __version__

if TYPE_CHECKING:
    from herd.api import Model, Output, load

__all__ = ["CapacityError", "FileProblem", "HerdError", "Model", "Output", "ProviderError", "UsageError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in ("Model", "Output", "load"):
        raise AttributeError(f"module 'herd' has no attribute {name!r}")
    from herd import api

    value = globals()[name] = getattr(api, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
