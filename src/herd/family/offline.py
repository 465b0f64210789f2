"""Whether this process may use the network, decided in one place.

herd has no telemetry. The libraries that it uses are told to have none either, before they are imported.
"""

from __future__ import annotations

import os

from herd.errors import ProviderError

_TRUE = {"1", "true", "yes", "on"}


def is_offline() -> bool:
    """Whether HERD_OFFLINE (or the hub's own HF_HUB_OFFLINE) forbids the network."""
    return any(os.environ.get(name, "").strip().lower() in _TRUE for name in ("HERD_OFFLINE", "HF_HUB_OFFLINE"))


def go_offline() -> None:
    """From now on nothing leaves the machine, neither from this process nor from those it starts."""
    os.environ["HERD_OFFLINE"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"


def silence_telemetry() -> None:
    """Tells libraries to report nothing to anybody. Call before importing one that might."""
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if is_offline():
        os.environ["HF_HUB_OFFLINE"] = "1"


def require_network(purpose: str) -> None:
    """`ProviderError` if this process is offline. `purpose` ends the sentence 'the network is needed to ...'."""
    if is_offline():
        raise ProviderError(
            f"Offline: the network is needed to {purpose}. Leave out --offline and unset HERD_OFFLINE and HF_HUB_OFFLINE to allow it."
        )
