"""The strict reader of the family's data: no unknown key, none missing, every type as declared, every figure with its source."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from herd.errors import FileProblem
from herd.family.release import Release, Shape, Wheel

_TABLES = {"shapes", "generations", "releases"}
FIGURES = (
    "announced",
    "parameters",
    "active_parameters",
    "huggingface_parameters",
    "shape",
    "context_length",
    "rope_theta",
    "rope_factor",
    "norm_eps",
    "released",
    "knowledge_cutoff",
    "pretraining_tokens",
    "gpu_hours",
    "meta_shards",
    "sampling",
)
"""Fields that need a source, in `sources` of the release or of its generation."""

_PYTHON_TYPES: Mapping[str, type[Any]] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "Shape": Shape,
    "Wheel": Wheel,
    "datetime.date": datetime.date,
    "tuple[str, ...]": tuple,
    "Mapping[str, float]": dict,
    "Mapping[str, str]": dict,
}


def read_tables(text: str, at: str) -> dict[str, Any]:
    """The TOML tables of one file of data. `FileProblem` for what is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileProblem(f"{at} is not valid TOML: {error}.") from error


def read_shapes(tables: Mapping[str, Any]) -> dict[str, Shape]:
    """The named shapes of a file. A shape's `vision` becomes the numbers of the encoder that it names."""
    shapes, encoders = {}, tables.get("encoders", {})
    for name, entry in tables.get("shapes", {}).items():
        numbers = dict(entry)
        architecture = numbers.pop("architecture", None)
        if not isinstance(architecture, str):
            raise FileProblem(f"shapes.{name}.architecture is {architecture!r}; expected the name of an architecture.")
        if "vision" in numbers:
            if numbers["vision"] not in encoders:
                raise FileProblem(f"shapes.{name}.vision is {numbers['vision']!r}; the encoders are {', '.join(encoders) or 'none'}.")
            numbers["vision"] = encoders[numbers["vision"]]
        shapes[name] = Shape(architecture=architecture, numbers=numbers)
    return shapes


def read_catalogue(text: str, shapes: Mapping[str, Shape] | None = None) -> dict[str, Release]:
    """Releases from the text of a file of data, with the shapes of another and its own. `FileProblem` names the entry and the key
    that is unknown, missing, wrong or without a source."""
    tables = read_tables(text, "The catalogue")
    unknown = sorted(set(tables) - _TABLES)
    if unknown:
        raise FileProblem(f"The catalogue has the table {unknown[0]!r}; expected {', '.join(sorted(_TABLES))}.")
    known = {**(shapes or {}), **read_shapes(tables)}
    generations = tables.get("generations", {})
    return {name: _release(name, entry, generations, known) for name, entry in tables.get("releases", {}).items()}


def _release(name: str, entry: Mapping[str, Any], generations: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Release:
    at = f"releases.{name}"
    if entry.get("generation") not in generations:
        raise FileProblem(f"{at}.generation is {entry.get('generation')!r}; the catalogue has {', '.join(generations) or 'none'}.")
    common = generations[entry["generation"]]
    values = {**common, **entry, "name": name, "sources": {**common.get("sources", {}), **entry.get("sources", {})}}
    for key in [key for key, value in entry.items() if value in ("", [])]:  # Nobody says for this release what its generation says.
        del values[key]
    if "shape" in values:
        if values["shape"] not in shapes:
            raise FileProblem(f"{at}.shape is {values['shape']!r}; the catalogue has {', '.join(shapes) or 'none'}.")
        values["shape"] = shapes[values["shape"]]
    if "wheel" in values:
        values["wheel"] = _read(Wheel, f"{at}.wheel", values["wheel"])
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    release: Release = _read(Release, at, {**values, **lists})
    _check_sources(at, release)
    return release


def _check_sources(at: str, release: Release) -> None:
    """Each figure has a source, and each source belongs to a field."""
    for key in release.sources:
        if key not in Release.__dataclass_fields__:
            raise FileProblem(f"{at}.sources names {key!r}, which is no field of a release.")
    for key in FIGURES:
        if getattr(release, key) not in (None, {}) and not release.sources.get(key):
            raise FileProblem(f"{at}.{key} has no source; add it to `sources` of the release or its generation.")


def _read(kind: type[Any], at: str, values: Mapping[str, Any]) -> Any:
    """A dataclass from a table: no unknown key, none missing, the types as declared."""
    declared = {entry.name: entry for entry in fields(kind)}
    for key, value in values.items():
        if key not in declared:
            import difflib

            close = difflib.get_close_matches(key, declared, n=1)
            raise FileProblem(f"{at} has the unknown key {key!r}{f'; did you mean {close[0]!r}' if close else ''}.")
        _check_type(f"{at}.{key}", str(declared[key].type), value)
    absent = [
        name for name, entry in declared.items() if entry.default is MISSING and entry.default_factory is MISSING and name not in values
    ]
    if absent:
        raise FileProblem(f"{at} lacks {', '.join(absent)}.")
    return kind(**values)


def _check_type(at: str, declared: str, value: Any) -> None:
    expected = _PYTHON_TYPES[declared.removesuffix(" | None")]
    if type(value) is not expected:
        raise FileProblem(f"{at} is {value!r}; expected {declared}.")
