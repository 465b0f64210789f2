"""What became of the records of a data set: how many were read, kept, and dropped for which reason, and where the first of each stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

from herd.data.reading import Place
from herd.errors import FileProblem
from herd.records import dataclass


@dataclass(slots=True)
class Tally:
    """How often something was met, and what the first time was."""

    count: int
    place: Place
    detail: str = ""


@dataclass(slots=True)
class Account:
    """Of one data set, kept while it is read. Drops take a record away; notes tell what was left out of one that is kept."""

    files: tuple[Path, ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()
    shape: str | None = None
    num_read: int = 0
    num_kept: int = 0
    drops: dict[str, Tally] = field(default_factory=dict)
    notes: dict[str, Tally] = field(default_factory=dict)

    def drop(self, reason: str, place: Place, detail: str = "") -> None:
        """A record that is not used."""
        _count(self.drops, reason, place, detail)

    def drop_kept(self, reason: str, place: Place, detail: str = "") -> None:
        """A record that was kept so far and is not used after all."""
        self.num_kept -= 1
        self.drop(reason, place, detail)

    def note(self, what: str, place: Place, detail: str = "") -> None:
        """Something of a record that is not used, or was changed."""
        _count(self.notes, what, place, detail)

    def take(self, other: Account) -> None:
        """Adds what became of another data set's records."""
        self.files, self.skipped = (*self.files, *other.files), (*self.skipped, *other.skipped)
        self.num_read, self.num_kept = self.num_read + other.num_read, self.num_kept + other.num_kept
        for mine, theirs in ((self.drops, other.drops), (self.notes, other.notes)):
            for reason, tally in theirs.items():
                mine.setdefault(reason, Tally(0, tally.place, tally.detail)).count += tally.count

    def lines(self) -> Iterator[str]:
        """The account for people."""
        yield f"{self.num_read:,} records of the shape {self.shape or 'unknown'}, {self.num_kept:,} kept"
        for title, tallies in (("dropped", self.drops), ("note", self.notes)):
            for reason, tally in sorted(tallies.items(), key=lambda item: -item[1].count):
                detail = f": {tally.detail}" if tally.detail else ""
                yield f"{title} {tally.count:,}: {reason} (first at {tally.place}{detail})"
        for path, reason in self.skipped:
            yield f"not read: {path} ({reason})"

    def as_json(self) -> dict[str, Any]:
        """The account for programs and for a run's folder."""
        return {
            "shape": self.shape,
            "read": self.num_read,
            "kept": self.num_kept,
            "dropped": _told(self.drops),
            "notes": _told(self.notes),
            "not_read": [{"path": str(path), "reason": reason} for path, reason in self.skipped],
        }

    def require_kept(self) -> None:
        """`FileProblem` if there is nothing to learn from, with the reasons."""
        if self.num_kept <= 0:
            where = ", ".join(map(str, self.files)) or "the data"
            reasons = "; ".join(list(self.lines())[1:4]) or "no record was found"
            raise FileProblem(f"{where}: 0 records are left to learn from: {reasons}.")


def _count(tallies: dict[str, Tally], reason: str, place: Place, detail: str) -> None:
    found = tallies.get(reason)
    if found is None:
        tallies[reason] = Tally(1, place, detail[:300])
    else:
        found.count += 1


def _told(tallies: dict[str, Tally]) -> dict[str, Any]:
    return {
        reason: {"count": tally.count, "first": str(tally.place), **({"detail": tally.detail} if tally.detail else {})}
        for reason, tally in tallies.items()
    }
