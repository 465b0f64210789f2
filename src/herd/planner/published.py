"""Claims of others about how many devices a model needs (`data/published.toml`), to set beside our own sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from herd.planner.reading import Source, filled, only, read_file, read_sources, source_named
from herd.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """That a release in a format runs on `least` to `most` of a device; `why` is our account of it."""

    release: str
    format: str
    device: str
    least: int
    most: int
    source: Source
    why: str


@cache
def claims() -> Sequence[Claim]:
    return read_claims(read_file("published.toml"))


def claims_about(release: str, stored: str) -> list[Claim]:
    return [claim for claim in claims() if claim.release in (release, f"{release}-instruct") and claim.format == stored]


def read_claims(tables: Mapping[str, Any]) -> list[Claim]:
    """Claims from the tables of a file. `FileProblem` names the entry and the key."""
    only(tables, ("sources", "claims"), "published")
    sources = read_sources(tables, "published")
    found = []
    for number, entry in enumerate(tables.get("claims", ()), start=1):
        at = f"published: claim {number}"
        found.append(filled(Claim, {**entry, "source": source_named(sources, entry.get("source"), at)}, at))
    return found
