"""The strict reader of the planner's data files: no unknown key, none missing, every type as declared, every value with its source."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from herd.errors import FileProblem, UsageError, did_you_mean
from herd.records import dataclass

T = TypeVar("T")
_DATA = Path(__file__).with_name("data")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value is from, and when it was so. `date` None: the source does not say; `note` may say what is known instead. `url`: where
    it can be looked up; `unchecked`: why nobody of us has looked there."""

    name: str
    title: str
    date: datetime.date | None = None
    note: str = ""
    url: str = ""
    unchecked: str = ""

    def age_days(self, today: datetime.date) -> int | None:
        return None if self.date is None else (today - self.date).days

    def __str__(self) -> str:
        said = f"{self.title}, {self.date.isoformat() if self.date else self.note or 'undated'}"
        return f"{said}{f', {self.url}' if self.url else ''}{f' (not checked: {self.unchecked})' if self.unchecked else ''}"


def read_file(name: str) -> dict[str, Any]:
    """The tables of one of our data files."""
    return read_text((_DATA / name).read_text(encoding="utf-8"), name)


def read_text(text: str, at: str) -> dict[str, Any]:
    """TOML tables. `FileProblem` for what is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileProblem(f"{at} is not valid TOML: {error}.") from error


def only(tables: Mapping[str, Any], names: tuple[str, ...], at: str) -> None:
    """`FileProblem` for a table or key that is not one of these."""
    for name in tables:
        if name not in names:
            raise FileProblem(f"{at} has the unknown key {name!r}{did_you_mean(name, names)} Expected {', '.join(names)}.")


def read_sources(tables: Mapping[str, Any], at: str) -> dict[str, Source]:
    """The sources that values of a file refer to by name."""
    return {name: filled(Source, {"name": name, **entry}, f"{at}: sources.{name}") for name, entry in tables.get("sources", {}).items()}


def source_named(sources: Mapping[str, Source], name: Any, at: str) -> Source:
    """`FileProblem` where a value has no source, or one that the file does not list."""
    if name not in sources:
        raise FileProblem(f"{at} has the source {name!r}; the file lists {', '.join(sources) or 'none'}.")
    return sources[name]


def filled(kind: type[T], values: Mapping[str, Any], at: str) -> T:
    """A dataclass from a table. `FileProblem` names the key that is unknown, missing or of another type than declared."""
    declared = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    only(values, tuple(declared), at)
    for name, value in values.items():
        expected = _TYPES.get(str(declared[name].type).removesuffix(" | None"))
        if expected is not None and type(value) is not expected:
            raise FileProblem(f"{at}.{name} is {value!r}; expected {declared[name].type}.")
    absent = [e.name for e in declared.values() if e.default is MISSING and e.default_factory is MISSING and e.name not in values]
    if absent:
        raise FileProblem(f"{at} lacks {', '.join(absent)}.")
    return kind(**values)


_TYPES: Mapping[str, type[Any]] = {"str": str, "int": int, "float": float, "bool": bool, "datetime.date": datetime.date}


def quantity(read: Callable[[str, str], T], value: Any, at: str) -> T:
    """A quantity with its unit, as data files write them ("80 GB"). `FileProblem` for anything else."""
    if not isinstance(value, str):
        raise FileProblem(f"{at} is {value!r}; expected a quantity with its unit, such as '80 GB'.")
    try:
        return read(value, at)
    except UsageError as error:
        raise FileProblem(str(error)) from error
