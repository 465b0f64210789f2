"""`herd.records.dataclass` makes classes that do what the standard library's do."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from typing import Any, ClassVar

import pytest

from herd import records

OPTIONS: list[dict[str, bool]] = [
    {},
    {"frozen": True},
    {"slots": True},
    {"frozen": True, "slots": True},
    {"frozen": True, "slots": True, "kw_only": True},
    {"frozen": True, "slots": True, "eq": False},
    {"slots": True, "repr": False},
]


def plain(dataclass: Any, options: dict[str, bool]) -> tuple[type, ...]:
    """Classes of many kinds, made by one of the two decorators. Positional fields come with keywords where options say so."""

    @dataclass(**options)
    class Empty:
        pass

    @dataclass(**options)
    class One:
        a: int

    @dataclass(**options)
    class Several:
        a: int
        b: list[int] = field(default_factory=list)
        c: str = field(default="c", compare=False)
        d: int = field(default=4, repr=False, hash=False)
        e: int = field(default=5, init=False)
        f: dict[str, int] = field(default_factory=dict, init=False)
        g: int = field(default=7, kw_only=True)
        count: ClassVar[int] = 3

        @property
        def double(self) -> int:
            return 2 * self.a

    @dataclass(**options)
    class Below(Several):
        h: int = 8

        def __post_init__(self) -> None:
            if self.h < 0:
                raise ValueError("h is negative")

    @dataclass(**options)
    class Own:
        a: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

    class Abstract(ABC):
        @abstractmethod
        def work(self) -> int: ...

    @dataclass(**options)
    class Concrete(Abstract):
        a: int = 1

        def work(self) -> int:
            return self.a

    return Empty, One, Several, Below, Own, Concrete


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((), {"a": 1}),
    ((1,), {}),
    ((1, [2]), {"g": 3}),
    ((), {"a": 1, "b": [5], "c": "x", "d": 9, "g": 0}),
    ((), {"a": 1, "e": 2}),
    ((1, 2, 3, 4, 5), {}),
    ((), {"a": 1, "h": -1}),
    ((), {"a": 1, "h": 2, "c": "other"}),
]


def outcome(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_objects_are_made_shown_compared_and_hashed_alike(options: dict[str, bool]) -> None:
    for ours, theirs in zip(plain(records.dataclass, options), plain(dataclasses.dataclass, options), strict=True):
        pairs = []
        for args, keywords in CALLS:
            mine, other = outcome(lambda: ours(*args, **keywords)), outcome(lambda: theirs(*args, **keywords))  # noqa: B023  # called at once
            assert type(mine) is ours if type(other) is theirs else mine == other
            if type(other) is theirs:
                pairs.append((mine, other))
        shown = [(repr(mine), repr(other)) for mine, other in pairs]
        assert all(mine == other for mine, other in shown) or options.get("repr") is False
        assert [outcome(lambda: hash(mine)) == outcome(lambda: hash(other)) for mine, other in pairs] or ours.__eq__ is object.__eq__  # noqa: B023
        for first in pairs:
            for second in pairs:
                assert (first[0] == second[0]) == (first[1] == second[1])
        assert (ours.__hash__ is None) == (theirs.__hash__ is None)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_librarys_functions_and_python_itself_see_the_same(options: dict[str, bool]) -> None:
    for ours, theirs in zip(plain(records.dataclass, options), plain(dataclasses.dataclass, options), strict=True):
        assert [each.name for each in dataclasses.fields(ours)] == [each.name for each in dataclasses.fields(theirs)]
        assert ours.__match_args__ == theirs.__match_args__  # type: ignore[attr-defined]
        assert hasattr(ours, "__slots__") == hasattr(theirs, "__slots__")
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
        kinds = [each.kind for each in inspect.signature(ours).parameters.values()]
        assert kinds == [each.kind for each in inspect.signature(theirs).parameters.values()]
        if "a" in ours.__match_args__ or options.get("kw_only"):  # type: ignore[attr-defined]
            mine, other = outcome(lambda: ours(a=1)), outcome(lambda: theirs(a=1))  # noqa: B023
            if type(mine) is ours:
                assert dataclasses.asdict(mine) == dataclasses.asdict(other)
                assert repr(dataclasses.replace(mine, a=2)) == repr(dataclasses.replace(other, a=2)) or options.get("repr") is False


@pytest.mark.parametrize("options", [each for each in OPTIONS if each.get("frozen")], ids=str)
def test_frozen_objects_refuse_changes_in_the_same_words(options: dict[str, bool]) -> None:
    for ours, theirs in zip(plain(records.dataclass, options), plain(dataclasses.dataclass, options), strict=True):
        if "a" not in {each.name for each in dataclasses.fields(ours)}:
            continue
        # With slots and a name that is no field the library's own refusal fails on its way (a TypeError of `super`).
        for name in ("a",) if options.get("slots") else ("a", "new"):
            results = []
            for each in (ours(a=1), theirs(a=1)):
                results.append((outcome(lambda: setattr(each, name, 2)), outcome(lambda: delattr(each, name))))  # noqa: B023
            assert results[0] == results[1]
            assert results[0][0][0] is FrozenInstanceError


def test_a_plain_class_below_a_frozen_one_may_have_attributes_of_its_own() -> None:
    @records.dataclass(frozen=True)
    class Base:
        a: int

    class Below(Base):
        pass

    each = Below(1)
    each.other = 2  # type: ignore[attr-defined]
    del each.other  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError):
        each.a = 3  # type: ignore[misc]


@records.dataclass(frozen=True, slots=True)
class Kept:
    """To be pickled, a class must be found by name."""

    a: int
    b: tuple[int, ...] = ()


def test_frozen_objects_with_slots_are_copied_and_pickled() -> None:
    each = Kept(1, (2,))
    assert pickle.loads(pickle.dumps(each)) == each == copy.deepcopy(each) == copy.copy(each)
    assert copy.copy(each) is not each and Kept.__doc__ == "To be pickled, a class must be found by name."


def test_a_class_inside_itself_can_be_shown() -> None:
    @records.dataclass
    class Ring:
        next: Any = None

    ring = Ring()
    ring.next = ring
    assert "..." in repr(ring)


def test_objects_can_be_taken_apart_by_pattern() -> None:
    match Kept(1, (2, 3)):
        case Kept(a, (first, *_)):
            assert (a, first) == (1, 2)


def test_initialisers_are_called_through_super() -> None:
    @records.dataclass(slots=True)
    class Base:
        a: int

    class Below(Base):
        def __init__(self) -> None:
            super().__init__(5)

    assert Below().a == 5 and Base(6).a == 6


def test_other_options_and_init_variables_are_the_librarys() -> None:
    @records.dataclass(order=True)
    class Ordered:
        a: int

    @records.dataclass(frozen=True)
    class WithVariable:
        a: int
        extra: dataclasses.InitVar[int]

        def __post_init__(self, extra: int) -> None:
            object.__setattr__(self, "a", self.a + extra)

    assert Ordered(1) < Ordered(2) and WithVariable(1, 2).a == 3


def test_nothing_is_compiled_before_the_first_object(monkeypatch: pytest.MonkeyPatch) -> None:
    @records.dataclass(frozen=True, slots=True)
    class Late:
        a: int

    assert type(vars(Late)["__init__"]) is records._Init
    assert Late(3).a == 3
    assert inspect.isfunction(vars(Late)["__init__"])
    assert sys.modules["herd.records"].__all__ == ["dataclass"]
