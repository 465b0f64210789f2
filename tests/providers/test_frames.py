"""Frames between processes: what goes in comes out, and nothing else comes in."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.errors import Busy, CapacityError, FileProblem, HerdError, ProviderError, UnknownModel, UsageError
from herd.providers.base import (
    Called,
    Caller,
    Calling,
    ChatRequest,
    CompletionRequest,
    Failed,
    Finished,
    Gauges,
    ModelFacts,
    Priority,
    Prompted,
    Text,
    TokenLogprob,
    ToolChoice,
    ToolUse,
    Usage,
)
from herd.providers.frames import (
    Ask,
    Beat,
    Begin,
    Call,
    Cancel,
    Count,
    Decode,
    Done,
    Embed,
    Encode,
    Frame,
    FrameReader,
    Moderate,
    Problem,
    Queued,
    Ready,
    Refused,
    Said,
    Started,
    Vectors,
    from_body,
    to_bytes,
)
from herd.providers.packing import BadFrame
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason
from herd.text.formats.guard import Category, Verdict
from herd.text.messages import Image, Message, Role
from herd.text.messages import Text as TextPart
from herd.text.tools import BuiltIn, Tool, ToolCall

SAMPLING = SamplingParams(temperature=0.5, logit_bias={3: -1.5}, seed=2**63 - 1, logprobs=3)
CHAT = ChatRequest(
    messages=[
        Message(Role.SYSTEM, "Be brief. é🙂\x00"),
        Message(Role.USER, (TextPart("look"), Image(b"\x89PNG"), Image("data:image/png;base64,AA=="))),
        Message(Role.ASSISTANT, "", (ToolCall("1", "f", {"a": [1, None, {"b": 2**90}]}),)),
        Message(Role.TOOL, "3", tool_call_id="1", name="f", ends_turn=False),
    ],
    sampling=SAMPLING,
    max_tokens=5,
    stop=("a", "b"),
    tools=(Tool("f", "does", {"type": "object"}, {"type": "function"}), BuiltIn.BRAVE_SEARCH),
    tool_choice=ToolChoice(ToolUse.NAMED, "f", False),
    constraint=Constraint(ConstraintKind.REGEX, "a+"),
    caller=Caller("me", b"salt", Priority.LOW),
    deadline_s=2.5,
)
TOKEN = TokenLogprob(7, b"\xc3", -0.1, ((7, -0.1), (8, -2.5)), (b"\xc3", b""))
FRAMES: list[Frame] = [
    Begin("smol", {"threads": 2, "draft": "off"}, {"a": "/adapters/a"}),
    Ask(1, CompletionRequest(prompt=[1, 2, 3], sampling=SamplingParams(), stop_ids=frozenset({4, 5}))),
    Ask(2, CompletionRequest(prompt="text", sampling=SAMPLING, suffix="end", score_prompt=True)),
    Cancel(2),
    Call(3, Encode("hi", None, True)),
    Call(4, Decode((1, 2))),
    Call(5, Embed(("a", (1, 2)), Caller())),
    Call(6, Moderate((Message(Role.USER, "x"),), Caller())),
    Ready(ModelFacts(name="m", context_length=8, vocab_size=9, fingerprint="f", sampling={"top_p": 0.9}, sources={"a": "b"})),
    Queued(1, 2, 3),
    Started((1, 2)),
    Refused(1, Problem("Busy", "later", None, 2.0)),
    Done(1, Vectors((b"\0\0\0\0",), (1,))),
    Done(2, Verdict(False, (Category("S1", "x"),), 0.5)),
    Done(3, None),
    Done(4, (1, 2)),
    Beat(Gauges(waiting=1, memory_bytes={"weights": 10**12}), 0.25),
    Said(
        (
            (1, (Text("né", (TOKEN,)), Finished(StopReason.STOP_TEXT, Usage(1, 2, 3, 0.5, 0.25), 9, "x"))),
            (2, (Calling(0, "f", "id", "{}"), Called(ToolCall("id", "f", {"a": 1})), Prompted((TOKEN,)))),
        )
    ),
]


def again(frame: Frame) -> Frame:
    (found,) = FrameReader().feed(to_bytes(frame))
    return found


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_arrives_as_it_was_sent(frame: Any) -> None:
    found = again(frame)
    if isinstance(frame, Ask) and not isinstance(frame.request.prompt, str):  # type: ignore[union-attr]
        assert list(found.request.prompt) == [1, 2, 3] and set(found.request.stop_ids) == {4, 5}  # type: ignore[union-attr]
        return
    assert found == frame


def test_a_conversation_with_pictures_tools_and_calls_arrives_whole() -> None:
    found = again(Call(1, Count(CHAT)))
    assert isinstance(found, Call) and isinstance(found.operation, Count)
    request = found.operation.request
    assert [image.source for image in request.messages[1].images] == [b"\x89PNG", "data:image/png;base64,AA=="]
    assert request.messages[0] == CHAT.messages[0] and request.messages[2:] == tuple(CHAT.messages[2:])
    assert request.messages[3].ends_turn is False and request.messages[2].tool_calls[0].id == "1"
    assert request.tools == CHAT.tools and request.tools[0].given == {"type": "function"}  # type: ignore[union-attr]
    for name in ("sampling", "stop", "tool_choice", "constraint", "caller", "deadline_s", "max_tokens"):
        assert getattr(request, name) == getattr(CHAT, name)


@pytest.mark.parametrize(
    "error",
    [
        UsageError("wrong", param="top_p"),
        UnknownModel("who"),
        Busy("later", retry_after_s=7.0),
        CapacityError("full"),
        FileProblem("bad"),
        ProviderError("gone"),
    ],
)
def test_an_error_arrives_with_its_kind_its_field_and_when_to_come_again(error: HerdError) -> None:
    found = again(Said(((1, (Failed(error),)),)))
    assert isinstance(found, Said)
    ((_, (event,)),) = found.events
    assert isinstance(event, Failed) and type(event.error) is type(error) and str(event.error) == str(error)
    assert vars(event.error) == vars(error)


def test_what_a_library_says_is_not_sent() -> None:
    problem = Problem.of(ZeroDivisionError("at 0x7f00"))
    assert problem.name == "HerdError" and "0x7f00" not in problem.message


def test_log_probabilities_keep_their_bits() -> None:
    values = [-0.1, -1e-300, -math.pi, float("-inf")]
    found = again(Said(((1, (Text("x", tuple(TokenLogprob(1, b"x", value) for value in values)),)),)))
    assert isinstance(found, Said)
    text = found.events[0][1][0]
    assert isinstance(text, Text)
    assert [struct.pack("<d", each.logprob) for each in text.tokens] == [struct.pack("<d", value) for value in values]


@given(st.data())
def test_any_text_and_bytes_arrive_however_the_stream_is_cut(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=1, max_size=4))
    frames = [Call(index, Encode(text, True, False)) for index, text in enumerate(texts)]
    stream = b"".join(map(to_bytes, frames))
    reader, found, at = FrameReader(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 40))
        found += list(reader.feed(stream[at : at + size]))
        at += size
    assert found == frames


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused_by_name_or_are_frames(body: bytes) -> None:
    try:
        frame = from_body(body)
    except BadFrame:
        return
    assert to_bytes(frame)


@given(st.integers(0, 12), st.recursive(st.none() | st.integers() | st.text() | st.floats() | st.binary(), st.lists, max_leaves=20))
def test_wrong_values_in_a_frame_of_any_kind_are_refused_by_name(kind: int, values: Any) -> None:
    try:
        body = msgpack.packb([kind, values])
    except (OverflowError, ValueError, UnicodeEncodeError):
        return
    try:
        from_body(body)
    except BadFrame:
        return


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_damaged_request_is_refused_and_says_where(cut: int) -> None:
    body = bytearray(to_bytes(Ask(1, CHAT))[4:])
    body[cut] ^= 0x3F
    with pytest.raises(BadFrame):
        from_body(bytes(body[:-1]))


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_arrive() -> None:
    with pytest.raises(BadFrame, match="claims 4294967295 bytes"):
        list(FrameReader().feed(b"\xff\xff\xff\xff"))
    with pytest.raises(BadFrame, match="at most 10"):
        list(FrameReader(10).feed(struct.pack(">I", 11)))


def test_nothing_but_our_own_types_is_made_of_a_frame() -> None:
    for body in (msgpack.packb(msgpack.ExtType(4, b"x")), msgpack.packb([2, [msgpack.Timestamp(1)]]), b"\x80", b"", b"\xc1"):
        with pytest.raises(BadFrame):
            from_body(body)
    with pytest.raises(BadFrame):
        from_body(b"\x91" * 100_000)


def test_a_picture_of_this_program_alone_cannot_be_sent() -> None:
    with pytest.raises(UsageError, match="file's bytes or a data URL"):
        to_bytes(Ask(1, ChatRequest(messages=[Message(Role.USER, (Image(object()),))], sampling=SamplingParams())))


def test_a_text_that_is_no_unicode_cannot_be_sent() -> None:
    with pytest.raises(UsageError, match="cannot be sent"):
        to_bytes(Call(1, Encode("\ud800", None, False)))
