"""The licences of the family as data: `data/licences.toml`. Clauses are named by number; nothing quotes the texts."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import field
from functools import cache
from typing import Any

from herd.errors import FileProblem
from herd.planner.reading import Source, filled, only, read_file, read_sources, source_named
from herd.records import dataclass

KINDS = ("research", "community", "apache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """What one licence fixes.

    kind            research (Llama 1), community (Llama 2 on) or apache
    counted_month   the calendar month before `version_date`, whose users section 2 counts
    notice          the two names and the copyright sign of the attribution line
    badge           None: the licence asks for none; `badge_reaches_callers`: its word is "using", not "containing"
    name_prefix     what names of distributed models begin with; `names_what_learned_from_outputs`: those too that only learned from
                    outputs
    policy          for each purpose that it rules out (or is unclear about), where
    """

    id: str
    title: str
    kind: str
    source: Source
    version_date: datetime.date | None = None
    counted_month: str | None = None
    notice: tuple[str, str, str] | None = None
    badge: str | None = None
    badge_reaches_callers: bool = False
    name_prefix: str | None = None
    names_what_learned_from_outputs: bool = False
    forbids_improving_other_llms: bool = False
    eu_clause: bool = False
    is_open_source: bool = False
    policy: Mapping[str, str] = field(default_factory=dict)

    def notice_line(self) -> str | None:
        """The line that 1.b.iii (Llama 1: section 3) wants in every copy."""
        if self.notice is None:
            return None
        name, licence, sign = self.notice
        return f"{name} is licensed under the {licence}, Copyright {sign} Meta Platforms, Inc. All Rights Reserved."


@dataclass(frozen=True, slots=True)
class Licences:
    """The whole file: licences by id, what duties and doubts mean, doubts of single releases."""

    licences: Mapping[str, Licence]
    duties: Mapping[str, str]
    doubts: Mapping[str, str]
    releases: Mapping[str, tuple[str, ...]]


@cache
def licence_data() -> Licences:
    return read_licences(read_file("licences.toml"))


def read_licences(tables: Mapping[str, Any]) -> Licences:
    """Licences from the tables of a file. `FileProblem` names the entry and the key."""
    only(tables, ("sources", "licences", "releases", "duties", "doubts"), "licences")
    sources = read_sources(tables, "licences")
    found = {}
    for name, entry in tables.get("licences", {}).items():
        at = f"licences: {name}"
        values = {"id": name, **entry, "source": source_named(sources, entry.get("source"), at)}
        if "notice" in values:
            values["notice"] = tuple(values["notice"])
        found[name] = filled(Licence, values, at)
        if found[name].kind not in KINDS:
            raise FileProblem(f"{at}.kind is {found[name].kind!r}; expected one of {', '.join(KINDS)}.")
    doubts = dict(tables.get("doubts", {}))
    releases = {name: tuple(own) for name, own in tables.get("releases", {}).items()}
    for name, own in releases.items():
        unknown = next((doubt for doubt in own if doubt not in doubts), None)
        if unknown is not None:
            raise FileProblem(f"licences: releases.{name} has the doubt {unknown!r}, which is not described.")
    return Licences(found, dict(tables.get("duties", {})), doubts, releases)
