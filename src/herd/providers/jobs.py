"""Teaching a served model: what somebody ordered, and who has the process for it. A server gives orders; its command knows how to learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from herd.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    """What is to be learned: conversations in a file, by a low-rank adapter of a model that is served under this name. `folder` is the
    run's; the adapter is `adapter` in it. What is None suits most data. held_out: a file of conversations that are measured, not learned;
    None: a share of the others. resume: the folder holds a run to go on with."""

    model: str
    data: str
    folder: str
    seed: int
    held_out: str | None = None
    resume: bool = False
    epochs: int | None = None
    batch: int | None = None
    lr: float | None = None


class Jobs(Protocol):
    """Fine-tuning beside a server, which never knows what computes."""

    def command(self, order: JobOrder) -> Sequence[str]:
        """The command of a process that learns: it ends with status 0 and the adapter, or tells what is wrong on stderr; with status 2 that
        is for whoever brought the data. SIGTERM has it save what it has and end."""
        ...
