"""`dataclass` as in the standard library, but its methods are written when they are first used.

The standard decorator writes and compiles six methods for every class: half a millisecond each time, and a start declares a
hundred classes of which it makes a dozen. Here `__init__` is compiled when a class makes its first object, and the other methods
are not compiled at all. What objects do is the same (tests/test_records.py); `fields`, `replace` and the like are the library's own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import FrozenInstanceError
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, **options):
        """The decorator; options that are not `frozen`, `slots`, `kw_only`, `eq` or `repr` are left to the library as a whole."""
        if cls is None:
            return lambda each: _declared(each, options)
        return _declared(cls, options)


__all__ = ["dataclass"]

_OURS = frozenset(("frozen", "slots", "kw_only", "eq", "repr"))


def _declared(cls: type, options: dict[str, bool]) -> type:
    annotations = vars(cls).get("__annotations__", {})
    if not options.keys() <= _OURS or "self" in annotations or any("InitVar" in str(each) for each in annotations.values()):
        return dataclasses.dataclass(**options)(cls)
    own = frozenset(vars(cls))
    if not cls.__doc__:
        cls.__doc__ = f"{cls.__name__}({', '.join(annotations)})"
    layout = {name: options[name] for name in ("slots", "kw_only") if name in options}
    made: type = dataclasses.dataclass(init=False, repr=False, eq=False, **layout)(cls)
    is_frozen, has_eq = options.get("frozen", False), options.get("eq", True)
    if "__init__" not in own:
        made.__init__ = _Init(made, is_frozen)  # type: ignore[misc]
    if options.get("repr", True) and "__repr__" not in own:
        made.__repr__ = _repr(made)  # type: ignore[method-assign, assignment]
    if has_eq and "__eq__" not in own:
        made.__eq__ = _eq(made)  # type: ignore[method-assign, assignment]
    if has_eq and "__hash__" not in own:
        made.__hash__ = _hash(made) if is_frozen else None  # type: ignore[method-assign, assignment]
    if is_frozen:
        made.__setattr__, made.__delattr__ = _refusals(made)  # type: ignore[method-assign, assignment]
        if options.get("slots"):
            made.__getstate__, made.__setstate__ = _getstate, _setstate  # type: ignore[method-assign, assignment, attr-defined]
    return made


class _Init:
    """Stands in `cls.__init__` until somebody looks at it; then the written method does."""

    def __init__(self, cls: type, is_frozen: bool) -> None:
        self._cls = cls
        self._is_frozen = is_frozen

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if vars(self._cls)["__init__"] is self:
            self._cls.__init__ = _init(self._cls, self._is_frozen)
        return vars(self._cls)["__init__"].__get__(instance, owner)


def _init(cls: type, is_frozen: bool) -> Callable[..., None]:
    """Writes `__init__`: a parameter for each field, then `__post_init__` if there is one."""
    names: dict[str, Any] = {"_set": object.__setattr__, "_missing": dataclasses.MISSING}
    positional: list[str] = []
    keywords: list[str] = []
    values: list[tuple[str, str]] = []
    for field in dataclasses.fields(cls):
        name, parameter, value = field.name, field.name, field.name
        if field.default is not dataclasses.MISSING:
            names[f"_default_{name}"] = field.default
            parameter = f"{name}=_default_{name}"
            value = name if field.init else f"_default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            names[f"_make_{name}"] = field.default_factory
            parameter = f"{name}=_missing"
            value = f"_make_{name}() if {name} is _missing else {name}" if field.init else f"_make_{name}()"
        elif not field.init:
            continue
        if field.init:
            (keywords if field.kw_only else positional).append(parameter)
        values.append((name, value))
    after = ["self.__post_init__()"] if hasattr(cls, "__post_init__") else []
    parameters = ["self", *positional, *(["*", *keywords] if keywords else [])]
    lines = [*(_frozen_lines(cls, names, values) if is_frozen else [f"self.{name} = {value}" for name, value in values]), *after]
    exec(f"def __init__({', '.join(parameters)}):\n " + "\n ".join(lines or ["pass"]), names)
    written: Callable[..., None] = names["__init__"]
    written.__qualname__ = f"{cls.__qualname__}.__init__"
    written.__module__ = cls.__module__
    written.__annotations__ = {field.name: field.type for field in dataclasses.fields(cls) if field.init} | {"return": None}
    return written


def _frozen_lines(cls: type, names: dict[str, Any], values: list[tuple[str, str]]) -> list[str]:
    """How the fields of an object that does not change are set. `object.__setattr__` takes ten times as long as an assignment; so an
    object with slots is of a class without refusals, its twin, until it has its fields. Only whoever makes it can see that."""
    slowly = [f"_set(self, {name!r}, {value})" for name, value in values]
    if cls.__bases__ != (object,) or "__slots__" not in vars(cls) or not values:
        return slowly
    names["_cls"], names["_twin"] = cls, type(cls.__name__, (), {"__slots__": vars(cls)["__slots__"]})
    quickly = ["_set(self, '__class__', _twin)", *(f"self.{name} = {value}" for name, value in values), "self.__class__ = _cls"]
    return ["if type(self) is _cls:", *(f" {line}" for line in quickly), "else:", *(f" {line}" for line in slowly)]


def _values(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A function from an object to the values of these fields."""
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda self: ()
    value = attrgetter(names[0])
    return lambda self: (value(self),)


def _repr(cls: type) -> Callable[[Any], str]:
    names = [field.name for field in dataclasses.fields(cls) if field.repr]

    @recursive_repr()
    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


def _eq(cls: type) -> Callable[[Any, object], bool]:
    values = _values([field.name for field in dataclasses.fields(cls) if field.compare])

    def __eq__(self: Any, other: object) -> bool:
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    return __eq__


def _hash(cls: type) -> Callable[[Any], int]:
    values = _values([field.name for field in dataclasses.fields(cls) if (field.compare if field.hash is None else field.hash)])
    return lambda self: hash(values(self))


def _refusals(cls: Any) -> tuple[Callable[[Any, str, Any], None], Callable[[Any, str], None]]:
    """`__setattr__` and `__delattr__` of objects that do not change."""
    names = frozenset(field.name for field in dataclasses.fields(cls))

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return __setattr__, __delattr__


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
