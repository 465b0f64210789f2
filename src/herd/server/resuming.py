"""What a server does with what another run of it, or another server on the same folder, left to be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from herd.server.house import House


async def resume(house: House) -> None:
    """Background answers that nobody works on any more have failed; batches and fine-tuning go on."""
    from herd.server.openai import background, batch_work, tuning_work

    await background.resume(house)
    await batch_work.resume(house)
    await tuning_work.resume(house)
