"""What a server does first with what another run of it left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herd.server.house import House


async def resume(house: House) -> None:
    """Background answers that nobody works on any more have failed; batches go on."""
    from herd.server.openai import background

    await background.resume(house)
