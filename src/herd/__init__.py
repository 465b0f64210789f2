"""herd: the home of the Llama family in Python.

    model = herd.load("smollm2-135m-instruct")
    print(model.generate("Once upon a time", max_tokens=32).text)

Names are looked up when they are first used, so that `import herd` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from herd.errors import CapacityError, FileProblem, HerdError, ProviderError, UsageError

if TYPE_CHECKING:
    from herd.api import Model, Output, load

    __version__: str

__all__ = ["CapacityError", "FileProblem", "HerdError", "Model", "Output", "ProviderError", "UsageError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Model", "Output", "load"):
        from herd import api

        value = getattr(api, name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'herd' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    """What is installed; "unknown" when the package is imported from its sources without being installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("herd-llama")
    except PackageNotFoundError:
        return "unknown"
