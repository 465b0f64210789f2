"""What hosted services ask for tokens: `data/services.toml`, dated prices per million tokens, and when an offer ends."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from herd.errors import FileProblem
from herd.planner.reading import Source, filled, only, read_file, read_sources, source_named
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.family.release import Release

OLD_AFTER_DAYS = 90
"""Prices older than this are warned about."""
SERVED_TOKENS = 1_000_000
"""No service was seen to take longer conversations, whatever the card of the model says (the project's page on prices, 2026-11-21)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """US dollars for a million tokens read (`reading`) and written (`writing`). `ends`: the day from which the service no longer
    has the model; `context` the longest it takes, where that is known to be less than the model's."""

    service: str
    release: str
    reading: float
    writing: float
    source: Source
    ends: datetime.date | None = None
    context: int | None = None
    note: str = ""

    def takes(self, tokens: int) -> bool:
        """Whether a conversation of so many tokens fits."""
        return tokens <= (SERVED_TOKENS if self.context is None else self.context)

    def is_over(self, today: datetime.date) -> bool:
        return self.ends is not None and today >= self.ends

    def dollars(self, prompt_tokens: float, answer_tokens: float) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.reading + answer_tokens * self.writing) / 1e6


@cache
def offers() -> Sequence[Offer]:
    return read_offers(read_file("services.toml"))


def offers_of(release: Release) -> list[Offer]:
    """Offers for this release, and for one tuned from it (services have the instruct models)."""
    from herd.family.catalogue import known

    def is_meant(name: str) -> bool:
        other = known(name)
        return name == release.name or (other is not None and other.kind == "instruct" and other.base == release.name)

    return [offer for offer in offers() if is_meant(offer.release)]


def read_offers(tables: Mapping[str, Any]) -> list[Offer]:
    """Offers from the tables of a file. `FileProblem` names the entry and the key."""
    only(tables, ("sources", "offers"), "services")
    sources = read_sources(tables, "services")
    found = []
    for number, entry in enumerate(tables.get("offers", ()), start=1):
        at = f"services: offer {number}"
        source = source_named(sources, entry.get("source"), at)
        found.append(filled(Offer, {**entry, "source": source}, at))
        if found[-1].source.date is None:
            raise FileProblem(f"{at}: its source {source.name!r} has no date, and prices change.")
    return found
