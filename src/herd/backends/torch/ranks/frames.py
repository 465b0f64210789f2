"""What the processes of one model say to each other: typed frames, bytes of known lengths, nothing that could run.

    frame = its length, that of its header, a header in JSON (its kind and small facts), then arrays of numbers one after another

To a follower: `Begin` first, then orders. From it: `Here` when the model is opened, `Done` or `Wrong` for each order that wants an answer,
`Used` now and then. A `Run` has no answer: what it makes goes through the group.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd import errors
from herd.backends.base import MemoryUse, Placed, Plan, Span, Watch
from herd.dtypes import BY_NAME
from herd.errors import HerdError
from herd.models.weights import Blocks, Dense, Matrix, Update, stored
from herd.processes import cut

_LENGTH, _TEXT = struct.Struct("<Q"), struct.Struct("<I")
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Begin:
    """What to load, and the process's place among the others. `meeting`: the folder where they meet; `options` those of the backend."""

    model: str
    mmproj: str | None
    adapter: str | None
    options: Mapping[str, Any]
    meeting: str
    index: int
    count: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Here:
    """The process has opened the model, and waits for the others. `device`: the kind of what it computes on."""

    device: str


@dataclass(frozen=True, slots=True)
class SentPicture:
    """A picture for an encoder. One whose `pixels` went over before comes without them."""

    pixels: Array
    rows: int
    columns: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Run:
    """One forward. The plan has no draws, and watches nothing but that it is not a decoding step."""

    plan: Plan
    is_decoding: bool


@dataclass(frozen=True, slots=True)
class Allocate:
    num_pages: int
    by_group: bool = False


@dataclass(frozen=True, slots=True)
class ReadPage:
    page: int


@dataclass(frozen=True, slots=True)
class WritePage:
    page: int
    contents: Array


@dataclass(frozen=True, slots=True)
class Replace:
    """A weight as a whole, in the place of the one there."""

    name: str
    leaf: Dense | Blocks


@dataclass(frozen=True, slots=True)
class AddAdapter:
    name: str
    updates: Mapping[str, Update]


@dataclass(frozen=True, slots=True)
class RemoveAdapter:
    name: str


@dataclass(frozen=True, slots=True)
class Used:
    """Bytes that the process holds on its device, by what for."""

    memory: MemoryUse


@dataclass(frozen=True, slots=True)
class Done:
    """An order was carried out. `contents`: what was asked for."""

    memory: MemoryUse
    contents: Array = field(default_factory=lambda: np.empty(0, np.uint8))


@dataclass(frozen=True, slots=True)
class Wrong:
    """An order was not carried out: the class of the error among `herd.errors`, and what it says."""

    kind: str
    message: str

    @staticmethod
    def of(problem: BaseException) -> Wrong:
        if isinstance(problem, HerdError) and hasattr(errors, type(problem).__name__):
            return Wrong(type(problem).__name__, str(problem))
        return Wrong("HerdError", f"{type(problem).__name__}: {problem}")

    @property
    def error(self) -> HerdError:
        found: HerdError = getattr(errors, self.kind)(self.message)
        return found


Frame = Begin | Here | Run | Allocate | ReadPage | WritePage | Replace | AddAdapter | RemoveAdapter | Used | Done | Wrong
_KINDS: Mapping[str, Any] = {kind.__name__: kind for kind in Frame.__args__}


def to_bytes(frame: Frame) -> list[bytes | memoryview]:
    """The pieces of a frame, one after another."""
    header, arrays = _taken_apart(frame)
    shapes = [[array.dtype.str, list(array.shape)] for array in arrays]
    text = json.dumps({"kind": type(frame).__name__, "is": header, "arrays": shapes}, separators=(",", ":")).encode()
    pieces = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays]
    length = _TEXT.size + len(text) + sum(piece.nbytes for piece in pieces)
    return [_LENGTH.pack(length) + _TEXT.pack(len(text)), text, *pieces]


class FrameReader:
    """Cuts what comes in into frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Frames that are whole with `data`."""
        self._held += data
        yield from map(_put_together, cut(self._held, _LENGTH, lambda length: None))  # a weight may be of any length


def _put_together(body: bytes) -> Frame:
    at = _TEXT.size + _TEXT.unpack_from(body)[0]
    told = json.loads(body[_TEXT.size : at])
    arrays: list[Array] = []
    for name, shape in told["arrays"]:
        dtype = np.dtype(name)
        count = math.prod(shape)
        arrays.append(np.frombuffer(body, dtype, count, at).reshape(shape))
        at += count * dtype.itemsize
    return _frame(told["kind"], told["is"], iter(arrays))


def _taken_apart(frame: Frame) -> tuple[Any, list[Array]]:
    """Small facts and arrays."""
    match frame:
        case Run(plan, is_decoding):
            header, arrays = _plan_apart(plan)
            return [is_decoding, *header], arrays
        case WritePage(page, contents):
            return page, [contents]
        case Replace(name, leaf):
            return [name, *_form(leaf)], [_data(leaf)]
        case AddAdapter(name, updates):
            forms = [[at, each.scale, *_form(each.down), *_form(each.up)] for at, each in updates.items()]
            return [name, forms], [_data(part) for each in updates.values() for part in (each.down, each.up)]
        case Used(memory):
            return _memory_apart(memory), []
        case Done(memory, contents):
            return _memory_apart(memory), [contents]
    return {name: getattr(frame, name) for name in frame.__slots__}, []


def _frame(kind: str, told: Any, arrays: Iterator[Array]) -> Frame:
    match kind:
        case "Run":
            return Run(_plan(told[1], told[2], told[3], arrays), told[0])
        case "WritePage":
            return WritePage(told, next(arrays))
        case "Replace":
            return Replace(told[0], _leaf(told[1:], arrays))
        case "AddAdapter":
            return AddAdapter(told[0], {form[0]: _update(form, arrays) for form in told[1]})
        case "Used":
            return Used(MemoryUse(*told))
        case "Done":
            return Done(MemoryUse(*told), next(arrays))
    found: Frame = _KINDS[kind](**told)
    return found


def _memory_apart(memory: MemoryUse) -> list[Any]:
    return [memory.weights, memory.cache, memory.buffers, dict(memory.other)]


def _form(leaf: Dense | Blocks) -> list[Any]:
    return [leaf.dtype.name, list(leaf.shape)]


def _data(leaf: Matrix) -> Array:
    assert isinstance(leaf, Dense | Blocks), "plain or in blocks"
    return np.asarray(leaf.data, np.uint8)


def _leaf(form: list[Any], arrays: Iterator[Array]) -> Dense | Blocks:
    return stored(BY_NAME[form[0]], tuple(form[1]), next(arrays))


def _update(form: list[Any], arrays: Iterator[Array]) -> Update:
    down, up = _leaf(form[2:4], arrays), _leaf(form[4:6], arrays)
    assert isinstance(down, Dense) and isinstance(up, Dense)
    return Update(down, up, form[1])


def _plan_apart(plan: Plan) -> tuple[list[Any], list[Array]]:
    """Spans as counts and one array of all their numbers; pictures by their place in a list, each once."""
    numbers: list[Array] = []
    pictures: dict[bytes, Any] = {}
    spans = []
    for span in plan.spans:
        placed = []
        for each in span.pictures:
            pictures.setdefault(each.picture.digest, each.picture)
            placed.append([each.picture.digest.hex(), len(each.positions)])
            numbers.append(np.asarray(each.positions, np.int64))
        numbers += [np.asarray(span.tokens, np.int64), np.asarray(span.pages, np.int64)]
        spans.append([span.start, len(span.tokens), len(span.pages), span.num_outputs, span.adapter, placed])
    told = [[digest.hex(), each.rows, each.columns] for digest, each in pictures.items()]
    return [spans, told, plan.watch is not None], [np.concatenate(numbers), *(each.pixels for each in pictures.values())]


def _plan(spans: list[Any], told: list[Any], is_watched: bool, arrays: Iterator[Array]) -> Plan:
    numbers = next(arrays)
    pictures = {name: SentPicture(next(arrays), rows, columns, bytes.fromhex(name)) for name, rows, columns in told}
    found, at = [], 0

    def taken(count: int) -> list[int]:
        nonlocal at
        at += count
        values: list[int] = numbers[at - count : at].tolist()
        return values

    for start, num_tokens, num_pages, num_outputs, adapter, placed in spans:
        seen = tuple(Placed(pictures[name], taken(count)) for name, count in placed)
        found.append(Span(start, taken(num_tokens), taken(num_pages), num_outputs, (), seen, adapter))
    return Plan(tuple(found), watch=Watch() if is_watched else None)
