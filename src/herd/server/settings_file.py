"""Settings from a file and from `--set`: strict, with the name that was probably meant."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from herd.errors import FileProblem, UsageError, did_you_mean
from herd.server.settings import Settings


def read_settings(file: Path | None, changes: Sequence[str], named: Mapping[str, Any]) -> Settings:
    """The server's settings: defaults, then the file, then `NAME=VALUE` texts, then what has an option of its own."""
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_checked(_read(file), str(file)))
    values.update(_checked(dict(map(_change, changes)), "--set"))
    values.update(named)
    return Settings(**values)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise FileProblem(f"{file}: cannot be read: {problem.strerror}.") from problem
    except ValueError as problem:  # TOML's own, and UTF-8's
        raise FileProblem(f"{file}: is not TOML: {problem}") from problem


def _change(text: str) -> tuple[str, Any]:
    """One `NAME=VALUE`. A value is TOML, or else a text without quotes."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set is {text!r:.80}; expected NAME=VALUE.")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return name.strip(), value


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values as the fields want them. `UsageError` for a name that there is not, and for a value of another kind."""
    known = {field.name: field for field in fields(Settings)}
    found = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{where}: there is no setting {name!r:.60}{did_you_mean(name, known)}")
        found[name] = _as(name, str(known[name].type), value, where)
    return found


def _as(name: str, kind: str, value: Any, where: str) -> Any:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind.partition(" ")[0] == "int" and is_whole:
        return value
    if kind == "float" and (is_whole or isinstance(value, float)):
        return float(value)
    if kind == "str" and isinstance(value, str):
        return value
    if kind.startswith("tuple") and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if kind.startswith("tuple") and isinstance(value, str):
        return (value,)
    if kind.startswith("Path") and isinstance(value, str):
        return Path(value)
    raise UsageError(f"{where}: {name} is {value!r:.60}; expected {_KINDS.get(kind.partition('[')[0].partition(' ')[0], kind)}.")


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "tuple": "a list of texts",
    "Path": "a path",
}
