"""What a run does, read from defaults, a TOML file and `--set a.b=1`: strict, and saved beside what came of it.

A recipe's settings are a frozen dataclass whose docstring has a line for each field: its name, two spaces or more, what it means.
Fields may be dataclasses themselves (`loop`, `data`), lists of them, and the types that TOML has. Later sources win: defaults, the
file, `--set`, options of the command. Contradictions between fields are refused by the dataclasses' own `__post_init__`.
"""

from __future__ import annotations

import inspect
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from herd.errors import FileProblem, UsageError, did_you_mean
from herd.files.text import read_text
from herd.records import dataclass

S = TypeVar("S")

MAX_FILE_BYTES = 1 << 20
MAX_SHOWN = 60
REDACTED = "(not kept)"
"""What a secret is written down as."""
_SECRET = re.compile(r"(^|_)(key|secret|password|credentials?|access_token|api_token)$")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as help shows it: `name` is what `--set` takes, `default` is TOML or "required"."""

    name: str
    kind: str
    default: str
    help: str


def read_settings(kind: type[S], file: Path | None = None, changes: Sequence[str] = (), named: Mapping[str, Any] | None = None) -> S:
    """Settings of a `kind`. `changes`: texts `a.b=VALUE`, as after `--set`; `named`: what has an option of its own, `{"loop.steps": 10}`.

    `UsageError` for a name that there is not, a value of another type or a contradiction; `FileProblem` for a file that is not TOML.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = _checked(kind, _toml(read_text(file, MAX_FILE_BYTES), str(file)), str(file), "")
    for text in changes:
        name, value = _change(text)
        _merge(values, _checked(kind, _nested(name, value), "--set", ""))
    for name, value in (named or {}).items():
        option = f"--{name.rpartition('.')[2].replace('_', '-')}"
        _merge(values, _checked(kind, _nested(name, value), option, ""))
    made: S = _made(kind, values, "")
    return made


def from_toml(kind: type[S], text: str, where: str) -> S:
    """Settings out of the text of `to_toml`. Secrets are not in it and have their defaults."""
    made: S = _made(kind, _checked(kind, _without_secrets(_toml(text, where)), where, ""), "")
    return made


def to_toml(settings: Any) -> str:
    """All settings, with their values; what is None is left out and secrets are redacted. `from_toml` reads it."""
    return "".join(f"{line}\n" for line in _table(settings, ""))


def differences(then: Any, now: Any) -> list[str]:
    """What two settings of one kind do not share: `loop.steps: 100 then, 200 now`. Secrets are not compared."""
    old, new = dict(_leaves(then, "")), dict(_leaves(now, ""))
    names = [*old, *(name for name in new if name not in old)]
    return [f"{name}: {old.get(name, 'not set')} then, {new.get(name, 'not set')} now" for name in names if old.get(name) != new.get(name)]


def described(kind: type, at: str = "", begun: Any = MISSING) -> Iterator[Setting]:
    """Every setting of a kind in the order of declaration, and after them those of its parts by their dotted names. begun: what the part
    of a larger kind begins with."""
    helps = told(kind)
    hints = typing.get_type_hints(kind)
    for field in sorted(fields(kind), key=lambda each: is_dataclass(hints[each.name])):
        name, wanted, found = f"{at}{field.name}", hints[field.name], _default(field, begun)
        if is_dataclass(wanted) and isinstance(wanted, type):
            yield from described(wanted, f"{name}.", found)
            continue
        default = "required" if found is MISSING else "not set" if found is None else shown(found)
        yield Setting(name, _kind_name(wanted), default, helps.get(field.name, ""))
        if (listed := _listed_kind(wanted)) is not None:
            yield from described(listed, f"{name}[].")


def need(is_so: bool, name: str, value: object, expected: str) -> None:
    """`UsageError` for a setting that is not as it must be; for `__post_init__` of settings."""
    if not is_so:
        raise UsageError(f"{name} is {value!r:.{MAX_SHOWN}}; expected {expected}.", param=name)


def need_least(settings: object, least: int, *names: str) -> None:
    """The same for whole numbers that must be `least` or more."""
    for name in names:
        need((value := getattr(settings, name)) >= least, name, value, f"a whole number, {least} or more")


def need_above(settings: object, least: float, *names: str, at: str = "") -> None:
    """The same for numbers that must be finite and more than `least`, or are not set. at: what stands before their names."""
    for name in names:
        value = getattr(settings, name)
        need(value is None or (math.isfinite(value) and value > least), f"{at}{name}", value, f"a finite number above {least:g}")


def need_positive(settings: object, *names: str, at: str = "") -> None:
    """The same for numbers that must be finite and 0 or more, or are not set."""
    for name in names:
        value = getattr(settings, name)
        need(value is None or (math.isfinite(value) and value >= 0), f"{at}{name}", value, "a number, 0 or more")


def need_backend(name: str) -> None:
    """The same for what a model is run by."""
    from herd.backends.base import BACKENDS

    need(name in BACKENDS, "backend", name, " or ".join(BACKENDS))


def told(kind: type) -> dict[str, str]:
    """The help of each field, from the docstring of its class, or of one that it builds upon."""
    names = {field.name for field in fields(kind)}
    found: dict[str, str] = {}
    last: list[str] = []
    for line in (line for each in reversed(kind.__mro__[:-1]) for line in inspect.cleandoc(each.__doc__ or "").splitlines()):
        match = re.match(r"\s*(\w+(?:, \w+)*)\s{2,}(\S.*)$", line)
        if match is not None and names.issuperset(here := match[1].split(", ")):
            last = here
            found |= dict.fromkeys(here, match[2].strip())
        elif line.startswith(" ") and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in last}
        else:
            last = []
    return found


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as problem:
        raise FileProblem(f"{where}: is not TOML: {problem}") from problem


def _change(text: str) -> tuple[str, Any]:
    """One `NAME=VALUE`. A value is TOML, or else a text without quotes."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--set is {text!r:.80}; expected NAME=VALUE, such as loop.steps=100.")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return name.strip(), value
    return name.strip(), parsed["value"] if len(parsed) == 1 else value


def _nested(name: str, value: Any) -> dict[str, Any]:
    for piece in reversed(name.split(".")):
        value = {piece: value}
    assert isinstance(value, dict)
    return value


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """`more` wins; tables are merged key by key."""
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _checked(kind: Any, values: Any, where: str, at: str) -> dict[str, Any]:
    """Values as the fields of `kind` want them; tables of parts stay dicts, so that sources can be merged."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: {at.rstrip('.')} is {values!r:.{MAX_SHOWN}}; expected a table of settings.")
    hints = typing.get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{where}: there is no setting {at + str(name)!r:.{MAX_SHOWN}}{_meant(kind, at, str(name))}")
        found[name] = _as(hints[name], value, where, f"{at}{name}")
    return found


def _meant(kind: Any, at: str, name: str) -> str:
    """The end of the sentence: a near name here, or the place where a setting of that name is."""
    here = {field.name for field in fields(kind)}
    near = did_you_mean(name, here)
    if near != ".":
        return near.replace("'", f"'{at}", 1) if at else near
    below = [setting.name for setting in described(kind, at) if setting.name.rpartition(".")[2] == name]
    return f"; did you mean {below[0]!r}?" if below else "."


def _as(wanted: Any, value: Any, where: str, name: str) -> Any:
    """One value as its type wants it. `UsageError` if it is of another."""
    if isinstance(wanted, type) and is_dataclass(wanted):
        return value if isinstance(value, wanted) else _checked(wanted, value, where, f"{name}.")
    origin = typing.get_origin(wanted)
    if origin in (Union, types.UnionType):
        options = [each for each in typing.get_args(wanted) if each is not type(None)]
        return None if value is None else _as(options[0], value, where, name)
    if origin is tuple:
        item = typing.get_args(wanted)[0]
        items = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) and value else None
        if items is not None:
            return tuple(_item(item, each, where, f"{name}[{index}]") for index, each in enumerate(items))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {str(key): _as(typing.get_args(wanted)[1], each, where, f"{name}.{key}") for key, each in value.items()}
    elif origin is Literal:
        if value in (allowed := typing.get_args(wanted)):
            return value
        raise UsageError(f"{where}: {name} is {value!r:.{MAX_SHOWN}}; expected one of {', '.join(allowed)}{did_you_mean(value, allowed)}")
    elif (found := _plain(wanted, value)) is not None:
        return found
    finite = " that is finite" if isinstance(value, float) and not math.isfinite(value) else ""
    raise UsageError(f"{where}: {name} is {value!r:.{MAX_SHOWN}}; expected {_kind_name(wanted)}{finite}.")


def _item(wanted: Any, value: Any, where: str, name: str) -> Any:
    found = _as(wanted, value, where, name)
    return _made(wanted, found, f"{name}.") if isinstance(found, dict) and is_dataclass(wanted) else found


def _plain(wanted: Any, value: Any) -> Any:
    """A TOML value as a plain type; None if it is of another."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if wanted is float and (is_whole or isinstance(value, float)):
        return float(value) if abs(value) < math.inf else None
    if (wanted is int and is_whole) or (wanted is bool and isinstance(value, bool)) or (wanted is str and isinstance(value, str)):
        return value
    return Path(value).expanduser() if wanted is Path and isinstance(value, str | Path) and str(value) else None


def _made(kind: Any, values: Mapping[str, Any], at: str, begun: Any = MISSING) -> Any:
    """The dataclass with these values, its parts made first. Fields that are not there have the values of `begun`, which is what a larger
    kind begins this part with, or else their defaults."""
    hints = typing.get_type_hints(kind)
    ready: dict[str, Any] = {}
    for field in fields(kind):
        wanted, default = hints[field.name], _default(field, begun)
        is_part = isinstance(wanted, type) and is_dataclass(wanted)
        value = values.get(field.name, default)
        if is_part and (isinstance(value, dict) or value is MISSING):
            value = _made(wanted, {} if value is MISSING else value, f"{at}{field.name}.", default)
        if value is MISSING:
            raise UsageError(f"The setting {at}{field.name} has no default and was not given.", param=f"{at}{field.name}")
        ready[field.name] = value
    return kind(**ready)


def _default(field: Field[Any], begun: Any) -> Any:
    """What a field has if nothing is said; `MISSING` if something must be."""
    if begun is not MISSING:
        return getattr(begun, field.name)
    made: Any = field.default_factory
    return field.default if made is MISSING else made()


def _table(settings: Any, at: str) -> Iterator[str]:
    """Lines of TOML: plain values first, then the tables of parts, then lists of tables."""
    tables, lists = [], []
    for name, value in ((field.name, getattr(settings, field.name)) for field in fields(settings)):
        if is_dataclass(value):
            tables.append((name, value))
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            lists.append((name, value))
        elif value is not None:
            yield f"{name} = {shown(REDACTED if is_secret(name) and value else value)}"
    for name, value in tables:
        yield from ("", f"[{at}{name}]", *_table(value, f"{at}{name}."))
    for name, values in lists:
        for value in values:
            yield from ("", f"[[{at}{name}]]", *_table(value, f"{at}{name}."))


def _leaves(settings: Any, at: str) -> Iterator[tuple[str, str]]:
    """(dotted name, TOML of the value) of every setting that is neither None nor secret."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{at}{field.name}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for index, each in enumerate(value):
                yield from _leaves(each, f"{at}{field.name}[{index}].")
        elif value is not None and not is_secret(field.name):
            yield f"{at}{field.name}", shown(value)


def is_secret(name: str) -> bool:
    """Whether the value of a setting of this name is not written down."""
    return _SECRET.search(name) is not None


def _without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found[name] = _without_secrets(value)
        elif isinstance(value, list):
            found[name] = [_without_secrets(each) if isinstance(each, Mapping) else each for each in value]
        elif value != REDACTED:
            found[name] = value
    return found


def shown(value: Any) -> str:
    """A value as TOML writes it; of a part only what it has otherwise than its kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(str(key))} = {shown(each)}" for key, each in value.items()) + "}"
    if is_dataclass(value):
        said = {each.name: getattr(value, each.name) for each in fields(value) if getattr(value, each.name) != _default(each, MISSING)}
        return "{" + ", ".join(f"{name} = {shown(each)}" for name, each in said.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return _text(str(value))


def _text(text: str) -> str:
    """A basic string: what must be escaped is."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in escaped) + '"'


def _listed_kind(wanted: Any) -> Any:
    """The dataclass that a list is of; None for everything else."""
    if typing.get_origin(wanted) is tuple and is_dataclass(item := typing.get_args(wanted)[0]):
        return item
    return None


def _kind_name(wanted: Any) -> str:
    """A type in words."""
    origin, inside = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind_name(each) for each in inside if each is not type(None))
    if origin is tuple:
        return "a list of tables" if is_dataclass(inside[0]) else f"a list, each {_kind_name(inside[0])}"
    if origin is Literal:
        return "one of " + ", ".join(map(str, inside))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a table, each {_kind_name(inside[1])}"
    return _KINDS.get(wanted, "a table")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
