"""Dataclasses as plain values (numbers, texts, bytes, lists), and back: what frames are filled with.

    packer = packer_of(ChatRequest)
    packer.pack(request)      -> [[["user", "Hi", ...]], [1.0, 0, ...], ...]       fields in their order, nothing by name
    packer.unpack(values)     -> the request, or `BadFrame` naming where a value is of the wrong kind

The packing follows from the types of the fields. A value of a union is preceded by the number of its member; an enum is its value; what
is typed `Any` travels as JSON text, where numbers have no largest size. Reading makes nothing but the types that are named: no code, no
names, no references.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any, get_args, get_origin

from herd.errors import HerdError, UsageError
from herd.records import dataclass
from herd.text.messages import Image

SCALARS = (str, int, bool, bytes)


class BadFrame(HerdError):
    """What arrived is no frame of ours: the process on the other side is another program, another version, or broken."""

    http_status = 500


@dataclass(frozen=True, slots=True)
class Packer:
    """One type: whether a value is of it, and both ways. `unpack` is told where the value stands, for its error."""

    accepts: Callable[[Any], bool]
    pack: Callable[[Any], Any]
    read: Callable[[Any, str], Any]

    def unpack(self, value: Any, at: str = "value") -> Any:
        """`BadFrame` for what `pack` would not have made."""
        try:
            return self.read(value, at)
        except (TypeError, ValueError, KeyError, HerdError) as problem:
            if isinstance(problem, BadFrame):
                raise
            raise BadFrame(f"{at} is not what it has to be: {problem!s:.200}.") from problem


def packer_of(kind: Any) -> Packer:
    """The packer of a type: a scalar, an enum, a dataclass, a sequence, mapping or union of such. Each is made once."""
    found = _MADE.get(kind)
    if found is None:
        found = _MADE[kind] = _made(kind)
    return found


_MADE: dict[Any, Packer] = {}


def _made(kind: Any) -> Packer:
    if kind in SCALARS:
        return _scalar(kind)
    if kind is float:
        return Packer(lambda v: isinstance(v, float | int), float, _read_float)
    if kind is None or kind is type(None):
        return Packer(lambda v: v is None, lambda v: None, _expect(lambda v: v is None, "nothing"))
    if kind is Any:
        return Packer(lambda v: True, _to_json, _read_json)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin in (Mapping, dict):
        return _json_object() if arguments[1] is Any else _mapping(*map(packer_of, arguments))
    if origin is tuple and arguments[-1] is not ...:
        return _pair(list(map(packer_of, arguments)))
    if origin in (tuple, list, Sequence, Collection):
        return _sequence(arguments[0], list if origin is list else tuple)
    return _of_class(kind)


def _of_class(kind: type) -> Packer:
    if kind is Image:
        return Packer(lambda v: isinstance(v, Image), _image_source, lambda value, at: Image(_read_source(value, at)))
    if issubclass(kind, Enum):
        return Packer(lambda v: isinstance(v, kind), lambda v: v.value, lambda value, at: kind(value))
    if issubclass(kind, tuple):
        return _named_tuple(kind)
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind} cannot be packed")
    return _record(kind)


def _scalar(kind: type) -> Packer:
    return Packer(lambda v: type(v) is kind, lambda v: v, _expect(lambda v: type(v) is kind, kind.__name__))


def _expect(accepts: Callable[[Any], bool], name: str) -> Callable[[Any, str], Any]:
    def read(value: Any, at: str) -> Any:
        if not accepts(value):
            raise BadFrame(f"{at} is {type(value).__name__}; expected {name}.")
        return value

    return read


def _read_float(value: Any, at: str) -> float:
    if type(value) not in (float, int):
        raise BadFrame(f"{at} is {type(value).__name__}; expected a number.")
    return float(value)


def _to_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _read_json(value: Any, at: str) -> Any:
    if type(value) is not str:
        raise BadFrame(f"{at} is {type(value).__name__}; expected JSON text.")
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadFrame(f"{at} is no JSON text.") from None


def _json_object() -> Packer:
    def read(value: Any, at: str) -> dict[str, Any]:
        found = _read_json(value, at)
        if not isinstance(found, dict):
            raise BadFrame(f"{at} is {type(found).__name__}; expected a JSON object.")
        return found

    return Packer(lambda v: isinstance(v, Mapping), lambda v: _to_json(dict(v)), read)


def _items(value: Any, at: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise BadFrame(f"{at} is {type(value).__name__}; expected a list.")
    return value


def _sequence(kind: Any, made: type) -> Packer:
    inner = packer_of(kind)
    if kind in SCALARS:

        def read(value: Any, at: str) -> Any:
            for index, each in enumerate(_items(value, at)):
                if type(each) is not kind:
                    raise BadFrame(f"{at}[{index}] is {type(each).__name__}; expected {kind.__name__}.")
            return made(value)

        return Packer(_is_sequence, list, read)

    def read_each(value: Any, at: str) -> Any:
        return made(inner.read(each, f"{at}[{index}]") for index, each in enumerate(_items(value, at)))

    return Packer(_is_sequence, lambda v: [inner.pack(each) for each in v], read_each)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def _pair(inner: list[Packer]) -> Packer:
    def read(value: Any, at: str) -> Any:
        if len(_items(value, at)) != len(inner):
            raise BadFrame(f"{at} has {len(value)} values; expected {len(inner)}.")
        return tuple(packer.read(each, f"{at}[{index}]") for index, (packer, each) in enumerate(zip(inner, value, strict=True)))

    return Packer(_is_sequence, lambda v: [packer.pack(each) for packer, each in zip(inner, v, strict=True)], read)


def _named_tuple(kind: type) -> Packer:
    hints = typing.get_type_hints(kind)
    inner = _pair([packer_of(hints[name]) for name in hints])
    return Packer(lambda v: isinstance(v, kind), inner.pack, lambda value, at: kind(*inner.read(value, at)))


def _mapping(keys: Packer, values: Packer) -> Packer:
    def read(value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            raise BadFrame(f"{at} is {type(value).__name__}; expected a map.")
        return {keys.read(key, f"a key of {at}"): values.read(each, f"{at}[{key!r:.40}]") for key, each in value.items()}

    return Packer(lambda v: isinstance(v, Mapping), lambda v: {keys.pack(key): values.pack(each) for key, each in v.items()}, read)


def _union(kinds: Sequence[Any]) -> Packer:
    inner = [packer_of(kind) for kind in kinds]

    def pack(value: Any) -> Any:
        for index, packer in enumerate(inner):
            if packer.accepts(value):
                return [index, packer.pack(value)]
        raise UsageError(f"{value!r:.80} cannot be sent to the engine; expected one of {', '.join(map(str, kinds))}.")

    def read(value: Any, at: str) -> Any:
        if len(_items(value, at)) != 2 or type(value[0]) is not int or not 0 <= value[0] < len(inner):
            raise BadFrame(f"{at} is none of the {len(inner)} kinds of value that it can be.")
        return inner[value[0]].read(value[1], at)

    return Packer(lambda v: any(packer.accepts(v) for packer in inner), pack, read)


def _record(kind: type) -> Packer:
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    inner = [(field.name, packer_of(hints[field.name])) for field in fields]

    def pack(value: Any) -> list[Any]:
        return [packer.pack(getattr(value, name)) for name, packer in inner]

    def read(value: Any, at: str) -> Any:
        if len(_items(value, at)) != len(inner):
            raise BadFrame(f"{at} has {len(value)} values; a {kind.__name__} has {len(inner)}.")
        return kind(**{name: packer.read(each, f"{at}.{name}") for (name, packer), each in zip(inner, value, strict=True)})

    return Packer(lambda v: isinstance(v, kind), pack, read)


def _image_source(image: Image) -> Any:
    """A file's bytes, a data URL, or a list of them. `UsageError` for a picture that exists in this program only."""
    source = image.source
    if isinstance(source, bytes | str):
        return source
    if isinstance(source, list | tuple) and all(isinstance(each, bytes | str) for each in source):
        return list(source)
    raise UsageError(f"A picture is given as {type(source).__name__}; an engine in another process needs its file's bytes or a data URL.")


def _read_source(value: Any, at: str) -> Any:
    if type(value) in (bytes, str):
        return value
    return [_expect(lambda v: type(v) in (bytes, str), "a picture")(each, at) for each in _items(value, at)]
