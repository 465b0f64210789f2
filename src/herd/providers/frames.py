"""What a web process and an engine's process say to each other over their socket.

    frame = length (4 bytes, big-endian), then msgpack of [kind, field, field, ...]

Each kind is a dataclass below. Lengths are capped before anything is read, values are checked on arrival, and nothing that arrives
can name code: it is never pickle. `Told` is what flows: the tokens of all requests that a step made, in one frame, as columns that are
checked without a look at each value. `Said` has what is more than a token and its text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, cast, final, get_args

import msgpack  # type: ignore[import-untyped]

from herd import errors
from herd.errors import Busy, HerdError, UsageError, lack
from herd.processes import cut
from herd.providers.base import (
    Called,
    Caller,
    Calling,
    ChatRequest,
    CompletionRequest,
    Event,
    Failed,
    Finished,
    Gauges,
    ModelFacts,
    Prompted,
    Text,
    TokenLogprob,
)
from herd.providers.packing import BadFrame, packer_of
from herd.records import dataclass
from herd.text.formats.guard import Verdict
from herd.text.messages import Message

FRAME_BYTES_MAX = 256 << 20
"""The longest frame: a conversation with its pictures, or a step's events. A longer one is refused before it is read."""
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Begin:
    """The first frame to an engine's process: which model to load (`herd.load`'s arguments by name), and adapters."""

    model: str
    options: Mapping[str, Any]
    adapters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ask:
    """Answer this. Later frames about it have its number."""

    number: int
    request: ChatRequest | CompletionRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Count:
    request: ChatRequest


@dataclass(frozen=True, slots=True)
class Encode:
    text: str
    bos: bool | None
    specials: bool


@dataclass(frozen=True, slots=True)
class Decode:
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Embed:
    inputs: Sequence[str | Sequence[int]]
    caller: Caller


@dataclass(frozen=True, slots=True)
class Moderate:
    messages: Sequence[Message]
    caller: Caller


@dataclass(frozen=True, slots=True)
class AddAdapter:
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class RemoveAdapter:
    name: str


Operation = Count | Encode | Decode | Embed | Moderate | AddAdapter | RemoveAdapter


@dataclass(frozen=True, slots=True)
class Call:
    """Do this; the result or what is wrong comes back under its number."""

    number: int
    operation: Operation


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Problem:
    """An error, by the name of its class in `herd.errors`."""

    name: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        """Classes of our own keep their nearest public name; what is no `HerdError` is a fault of herd and says no more than its kind,
        unless the system lacks something."""
        error = lack(error) or error
        if not isinstance(error, HerdError):
            return cls("HerdError", f"The engine failed unexpectedly ({type(error).__name__}). This is a fault of herd.")
        name = next(each.__name__ for each in type(error).__mro__ if getattr(errors, each.__name__, None) is each)
        return cls(name, str(error), getattr(error, "param", None), getattr(error, "retry_after_s", None))

    @property
    def error(self) -> HerdError:
        kind = getattr(errors, self.name, None)
        if not (isinstance(kind, type) and issubclass(kind, HerdError)):
            return HerdError(self.message)
        if self.retry_after_s is not None and issubclass(kind, Busy):
            return kind(self.message, retry_after_s=self.retry_after_s)
        if issubclass(kind, UsageError):
            return kind(self.message, param=self.param)
        return kind(self.message)


@dataclass(frozen=True, slots=True)
class Broken:
    """The model cannot be loaded; the process ends."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class Queued:
    """A request was checked and waits for its turn."""

    number: int
    prompt_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Started:
    """The step that begins now is the first of these requests."""

    numbers: Sequence[int]


@dataclass(frozen=True, slots=True)
class Refused:
    """A request or an operation cannot be honoured."""

    number: int
    problem: Problem


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings: float32 bytes of each, and how many tokens each input has."""

    values: Sequence[bytes]
    num_tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Done:
    """An operation's result."""

    number: int
    value: int | str | Sequence[int] | Vectors | Verdict | None


@dataclass(frozen=True, slots=True)
class Beat:
    """The process lives. step_s: how long the step in progress has taken so far."""

    gauges: Gauges
    step_s: float


@dataclass(frozen=True, slots=True)
class Said:
    """Events of requests, by number."""

    events: Sequence[tuple[int, Sequence[Event]]]


@dataclass(frozen=True, slots=True)
class Told:
    """A token of each of these requests, in columns: their numbers, what each token says, its id, its bytes and its log-probability."""

    numbers: Sequence[int]
    texts: Sequence[str]
    tokens: Sequence[int]
    data: Sequence[bytes]
    logprobs: Sequence[float]

    def each(self) -> Iterable[tuple[int, Text]]:
        """The requests' numbers and what is said to them."""
        scored = zip(self.tokens, self.data, self.logprobs, _NONE, _NONE, strict=False)
        made = cast("Iterable[TokenLogprob]", map(_new_tuple, repeat(TokenLogprob), scored))  # as its constructor does, for a third
        return zip(self.numbers, map(Text, self.texts, zip(made, strict=True)), strict=True)


_NONE = repeat(())
_new_tuple = tuple.__new__
Frame = Begin | Ask | Cancel | Call | Ready | Broken | Queued | Started | Refused | Done | Beat | Said | Told
_KINDS: tuple[type, ...] = get_args(Frame)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_SAID, _TOLD = _NUMBERS[Said], _NUMBERS[Told]
_COLUMNS = (int, str, int, bytes, float)
_RARE: tuple[type, ...] = (Prompted, Calling, Called, Finished)


def to_bytes(frame: Frame) -> bytes:
    """A frame with its length. `UsageError` for one that is too long, or that holds what cannot be sent."""
    number = _NUMBERS[type(frame)]
    if type(frame) is Told:
        values: Any = (frame.numbers, frame.texts, frame.tokens, frame.data, frame.logprobs)
    else:
        values = _pack_said(frame) if isinstance(frame, Said) else packer_of(type(frame)).pack(frame)
    try:
        body = msgpack.packb([number, values], use_bin_type=True)
    except (OverflowError, ValueError, UnicodeEncodeError) as problem:
        raise UsageError(f"The request cannot be sent to the engine: {problem}.") from None
    if len(body) > FRAME_BYTES_MAX:
        raise UsageError(f"The request takes {len(body)} bytes; at most {FRAME_BYTES_MAX} are sent to an engine.")
    return _LENGTH.pack(len(body)) + bytes(body)


def from_body(body: bytes | memoryview) -> Frame:
    """A frame without its length. `BadFrame` for anything that `to_bytes` would not have made."""
    try:
        found = msgpack.unpackb(body, use_list=False, raw=False, strict_map_key=False, ext_hook=_refuse_extension)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as problem:
        raise BadFrame(f"A frame of {len(body)} bytes is no msgpack of ours: {type(problem).__name__}.") from None
    if not isinstance(found, tuple) or len(found) != 2 or type(found[0]) is not int or not 0 <= found[0] < len(_KINDS):
        raise BadFrame("A frame does not begin with its kind.")
    if found[0] == _TOLD:
        return _unpack_told(found[1])
    if found[0] == _SAID:
        return _unpack_said(found[1])
    kind = _KINDS[found[0]]
    frame: Frame = packer_of(kind).unpack(found[1], kind.__name__)
    return frame


def _refuse_extension(code: int, data: bytes) -> Any:
    raise BadFrame(f"A frame holds an extension of kind {code}; there are none.")


def _pack_said(frame: Said) -> list[Any]:
    return [(number, [_pack_event(event) for event in events]) for number, events in frame.events]


def _pack_event(event: Event) -> Any:
    if type(event) is Text:
        return (0, event.text, event.tokens)
    if isinstance(event, Failed):
        return (1, packer_of(Problem).pack(Problem.of(event.error)))
    return (2 + _RARE.index(type(event)), packer_of(type(event)).pack(event))


def _unpack_said(values: Any) -> Said:
    try:
        return Said(tuple((_number(number), tuple(map(_unpack_event, events))) for number, events in values))
    except (TypeError, ValueError, IndexError) as problem:
        raise BadFrame(f"Said is not what it has to be: {problem!s:.200}.") from problem


def _unpack_told(columns: Any) -> Told:
    if type(columns) is not tuple or len(columns) != len(_COLUMNS) or not all([type(each) is tuple for each in columns]):
        raise BadFrame("Told is not five columns.")
    for column, kind in zip(columns, _COLUMNS, strict=True):
        if len(column) != len(columns[0]) or not set(map(type, column)) <= {kind}:
            raise BadFrame(f"A column of Told is not {len(columns[0])} values of type {kind.__name__}.")
    return Told(*columns)


def _number(value: Any) -> int:
    if type(value) is not int:
        raise BadFrame(f"Said has the number {value!r:.40}.")
    return value


def _unpack_event(values: Any) -> Event:
    kind = values[0]
    if kind == 0:
        _, text, tokens = values
        if type(text) is not str:
            raise BadFrame(f"A text is {type(text).__name__}.")
        if len(tokens) == 1 and type(found := tokens[0]) is tuple and len(found) == 5 and not found[3]:  # nearly all of them
            token, data, logprob, top, _ = found
            if type(token) is int and type(data) is bytes and type(logprob) is float and type(top) is tuple:
                return Text(text, (TokenLogprob(token, data, logprob),))
        return Text(text, tuple([_unpack_token(*each) for each in tokens]) if tokens else ())
    if kind == 1:
        problem: Problem = packer_of(Problem).unpack(values[1], "Failed")
        return Failed(problem.error)
    if type(kind) is not int or not 2 <= kind < 2 + len(_RARE):
        raise BadFrame(f"There is no event of kind {kind!r:.40}.")
    event: Event = packer_of(_RARE[kind - 2]).unpack(values[1], _RARE[kind - 2].__name__)
    return event


def _unpack_token(token: Any, data: Any, logprob: Any, top: Any, top_data: Any) -> TokenLogprob:
    if type(token) is not int or type(data) is not bytes or type(logprob) is not float or type(top) is not tuple:
        raise BadFrame("A token is not an id, its bytes, its log-probability and alternatives.")
    if top and not (
        type(top_data) is tuple
        and all(type(each) is tuple and len(each) == 2 and type(each[0]) is int and type(each[1]) is float for each in top)
        and all(type(each) is bytes for each in top_data)
    ):
        raise BadFrame("A token's alternatives are not ids with log-probabilities and bytes.")
    return TokenLogprob(token, data, logprob, top, top_data)


@final
class FrameReader:
    """Cuts a stream of bytes into frames. `BadFrame` for a length beyond the limit, before its bytes are there."""

    def __init__(self, limit: int = FRAME_BYTES_MAX) -> None:
        self._limit = limit
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """More bytes; the frames that became whole by them."""
        self._held += data
        yield from map(from_body, cut(self._held, _LENGTH, self._check))

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise BadFrame(f"A frame claims {length} bytes; at most {self._limit} are read.")
