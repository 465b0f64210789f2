"""How long-running work tells how far it is, without knowing who looks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told as bytes arrive. The terminal draws a bar of it; a library user gives none and sees nothing."""

    def __call__(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """`name` says what is being done (a new name begins a new bar); `done_bytes` of `total_bytes` are done."""
        ...


def silent(name: str, done_bytes: int, total_bytes: int) -> None:
    """The progress of those who do not look."""
