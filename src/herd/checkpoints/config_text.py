"""A config as plain JSON values and back, exactly: how our own files keep what their layout has no key for.

Numbers keep all their bits (GGUF stores float32, and Meta's params.json knows one way to scale positions). A file that has such
a description must say the same in its ordinary keys: the reader writes those again from the description and compares.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from herd.checkpoints.config_reader import MAX_CONTEXT, shown
from herd.errors import FileProblem

C = TypeVar("C")
KIND = "kind"
MAX_ITEMS = 1 << 16


def describe(config: Any) -> dict[str, Any]:
    """The fields of a dataclass; nested ones become objects with their class's name as `kind`."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def restore(kind: type[C], values: Any, where: str) -> C:
    """The config of class `kind` that `describe` has written. `FileProblem` names a field that is missing, unknown or wrong."""
    restored = _dataclass(kind, values, where)
    return typing.cast(C, restored)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {KIND: type(value).__name__, **describe(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


def _dataclass(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise FileProblem(f"{where}: is {shown(values)}; allowed is an object.")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    given = {name: value for name, value in values.items() if name != KIND}
    if sorted(given) != sorted(names):
        odd = sorted(set(given) ^ set(names))
        raise FileProblem(f"{where}: the fields {shown(odd)} are missing or not known in {kind.__name__}.")
    return kind(**{name: _value(hints[name], given[name], f"{where}.{name}") for name in names})


def _value(hint: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    for choice in choices:
        if choice is type(None):
            if value is None:
                return None
        elif dataclasses.is_dataclass(choice):
            if isinstance(value, Mapping) and value.get(KIND) == choice.__name__:  # type: ignore[union-attr]
                return _dataclass(typing.cast(type, choice), value, where)
        elif typing.get_origin(choice) is tuple:
            if isinstance(value, list) and len(value) <= MAX_ITEMS:
                return tuple(_value(typing.get_args(choice)[0], each, where) for each in value)
        elif _fits(choice, value):
            return float(value) if choice is float else value
    raise FileProblem(f"{where}: is {shown(value)}, which is not allowed there.")


def _fits(kind: Any, value: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and -1 <= value <= MAX_CONTEXT
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= 1e15
    return kind is str and isinstance(value, str) and len(value) <= 256
