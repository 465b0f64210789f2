"""How a server of this command has models taught: `herd tune sft`, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from herd.providers.jobs import JobOrder


@final
class TuneJobs:
    """`Jobs` for models by the names that they are served under."""

    def __init__(self, models: Mapping[str, str]) -> None:
        """models: what `herd tune --model` takes, by served name."""
        self._models = dict(models)

    def command(self, order: JobOrder) -> Sequence[str]:
        begun = [sys.executable, "-m", "herd", "tune", "sft", "--json"]
        if order.resume:
            return [*begun, "--config", f"{order.folder}/config.toml", "--out", order.folder, "--resume"]
        made = [*begun, "--model", self._models[order.model], "--data", order.data, "--out", order.folder, "--lora"]
        made += ["--seed", str(order.seed)]
        if order.held_out is not None:
            made += ["--held-out-data", order.held_out]
        for name, value in (("--epochs", order.epochs), ("--batch", order.batch), ("--lr", order.lr)):
            if value is not None:
                made += [name, str(value)]
        return made
