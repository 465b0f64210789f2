"""Names of models: Ollama's clients write `name:latest` where they mean `name`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herd.server.house import House

LATEST = ":latest"


def model_name(house: House, asked: str) -> str:
    """The name under which the pool knows what a client asks for. `:latest` is dropped unless an adapter is called that."""
    if asked.endswith(LATEST) and all(offer.name != asked for offer in house.pool.offers()):
        return asked.removesuffix(LATEST)
    return asked
