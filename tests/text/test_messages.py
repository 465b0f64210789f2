"""Messages and tools from what clients send: read exactly, or refused with the place and what was found there."""

from __future__ import annotations

from typing import Any

import pytest

from herd.errors import UsageError
from herd.text.messages import BuiltIn, Image, Message, Role, Text, Tool, ToolCall, read_messages, read_tools

DATA_URL = "data:image/png;base64,iVBORw0KGgo="
FUNCTION = {"name": "f", "description": "does", "parameters": {"type": "object"}}


def read(**fields: Any) -> Message:
    return read_messages([{"role": "user", **fields}])[0]


def test_a_content_is_a_text_or_a_list_of_texts_and_pictures() -> None:
    assert read(content="a") == Message(Role.USER, "a")
    message = read(content=[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}}, "b"])
    assert message.text == "ab" and [type(part) for part in message.parts] == [Text, Image, Text]
    assert [image.source for image in message.images] == [DATA_URL]
    assert read(content=[{"type": "image_url", "image_url": DATA_URL}]).images[0].source == DATA_URL
    assert read(content="").parts == () and read(content="a").parts == (Text("a"),)


def test_pictures_may_be_pil_images_or_bytes() -> None:
    pillow = pytest.importorskip("PIL.Image")
    picture = pillow.new("RGB", (2, 3))
    for part in (picture, {"type": "image", "image": picture}):
        assert read(content=["look", part]).images[0].open().size == (2, 3)
    assert read(content=[{"type": "image", "image": bytearray(b"x")}]).images[0].source == b"x"


def test_a_video_is_its_frames() -> None:
    from io import BytesIO

    from PIL import Image

    frames = [Image.new("RGB", (8, 8), (step, 0, 0)) for step in range(0, 240, 12)]
    file = BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    listed = read(content=[{"type": "video", "video": frames[:3]}, "What moves?"])
    assert [image.source for image in listed.images] == frames[:3] and listed.text == "What moves?"
    animated = read(content=[{"type": "video", "video": file.getvalue()}])
    assert len(animated.images) == 8


@pytest.mark.parametrize("url", ["https://example.org/a.png", "http://127.0.0.1/", "file:///etc/passwd", "ftp://a/b", "/etc/passwd", ""])
def test_addresses_and_file_names_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"messages\[0\]\.content\[0\]\.image_url is .*; pictures are given in the message"):
        read(content=[{"type": "image_url", "image_url": {"url": url}}])


def test_an_assistants_calls_and_a_tools_result_are_read() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, null]}'}}
    messages = read_messages(
        [
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "4"},
            {"role": "ipython", "content": "5"},
            {"role": "developer", "content": "6"},
        ]
    )
    assert messages[0] == Message(Role.ASSISTANT, "", (ToolCall("", "f", {"a": [1, None]}),))
    assert messages[0].tool_calls[0].id == "c1"
    assert messages[1] == Message(Role.TOOL, "4", tool_call_id="c1", name="f")
    assert [message.role for message in messages[2:]] == [Role.TOOL, Role.SYSTEM]
    as_object = {"id": "c1", "function": {"name": "f", "arguments": {"a": [1, None]}}}
    assert read_messages([{"role": "assistant", "tool_calls": [as_object]}])[0] == messages[0]
    assert read_messages(messages) == messages


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content": 5}, r"messages\[0\]\.content is int"),
        ({"content": None}, r"content is NoneType"),
        ({}, r"content is NoneType"),
        ({"role": "robot", "content": ""}, r"role is 'robot'; expected one of system, user, assistant, tool"),
        ({"role": [], "content": ""}, r"role is \[\]"),
        ({"content": "a", "extra": 1}, r"has extra; only content, name,"),
        ({"content": [{"type": "text", "text": 5}]}, r"content\[0\]\.text is int"),
        ({"content": [{"type": "sound"}]}, r"content\[0\] is .*expected an object of type text, image_url, image or video"),
        ({"content": [{"type": "video"}]}, r"content\[0\]\.video is NoneType; expected a list of pictures, or the bytes"),
        ({"content": [{"type": "video", "video": []}]}, r"content\[0\]\.video is an empty list"),
        ({"content": [{"type": "video", "video": ["a.mp4"]}]}, r"video\[0\] is 'a.mp4'; pictures are given in the message"),
        ({"content": [{"type": "video", "video": b"GIF", "fps": 2}]}, r"content\[0\] has fps; a part of type video has only video"),
        ({"content": [5]}, r"content\[0\] is 5"),
        ({"content": [{"type": "text", "text": "a", "cache": 1}]}, r"content\[0\] has cache"),
        ({"content": [{"type": "image_url", "image_url": {"uri": "x"}}]}, r"image_url has uri"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, r"image_url has no url"),
        ({"content": [{"type": "image", "image": 5}]}, r"image is int; expected a data: URL, the bytes"),
        ({"role": "system", "content": [{"type": "image", "image": b"x"}]}, r"has a picture and the role system"),
        ({"content": "a", "tool_calls": [{}]}, r"has tool_calls and the role user"),
        ({"content": "a", "tool_call_id": "x"}, r"has tool_call_id and the role user"),
        ({"role": "tool", "content": "a", "tool_call_id": 5}, r"tool_call_id is int"),
        ({"role": "assistant", "tool_calls": 5}, r"tool_calls is int"),
        ({"role": "assistant", "tool_calls": [5]}, r"tool_calls\[0\] is 5"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "no"}}]}, r"arguments is 'no', which is not JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, r"arguments is list"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a b", "arguments": "{}"}}]}, r"name is 'a b'; a name is"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}, "other": 1}]}, r"tool_calls\[0\] has other"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": float("nan")}}}]},
            r"cannot be written as JSON",
        ),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 99999}}]}, r"which is not JSON"),
    ],
)
def test_a_wrong_message_is_refused_with_its_place(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(**fields)


@pytest.mark.parametrize("values", [[], "text", {"role": "user"}, None, [5]])
def test_what_is_no_list_of_messages_is_refused(values: Any) -> None:
    with pytest.raises(UsageError, match="messages"):
        read_messages(values)


def test_tools_are_read_from_openais_shapes_and_built_in_ones_by_name() -> None:
    wrapped = {"type": "function", "function": {**FUNCTION, "strict": True}}
    tools = read_tools([wrapped, {"type": "function", **FUNCTION, "name": "g"}, "brave_search", {"type": "code_interpreter"}, Tool("h")])
    assert tools == (
        Tool("f", "does", {"type": "object"}),
        Tool("g", "does", {"type": "object"}),
        BuiltIn.BRAVE_SEARCH,
        BuiltIn.CODE_INTERPRETER,
        Tool("h"),
    )
    assert isinstance(tools[0], Tool) and tools[0].written == wrapped
    assert isinstance(tools[4], Tool) and tools[4].written["function"]["name"] == "h"
    assert read_tools(None) == read_tools([]) == () and read_tools(tools) == tools


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (5, "tools is int"),
        ("f", "tools is str"),
        ([5], r"tools\[0\] is 5"),
        (["bing"], r"tools\[0\] is 'bing'; .* brave_search, wolfram_alpha, code_interpreter"),
        ([{"type": "retrieval"}], r"tools\[0\]\.type is 'retrieval'"),
        ([{"type": "function", "function": 5}], r"tools\[0\]\.function is int"),
        ([{"type": "function", "function": {}}], r"function\.name is None"),
        ([{"type": "function", "function": {"name": "a\nb"}}], r"name is 'a\\nb'"),
        ([{"type": "function", "function": {"name": "<|eot_id|>"}}], r"a name is up to 128 letters"),
        ([{"type": "function", "function": {"name": "x" * 200}}], r"a name is up to 128 letters"),
        ([{"type": "function", "function": {**FUNCTION, "returns": 1}}], r"tools\[0\]\.function has returns"),
        ([{"type": "function", "function": FUNCTION, "extra": 1}], r"has extra"),
        ([{"type": "function", "function": {"name": "f", "description": 5}}], r"description is int"),
        ([{"type": "function", "function": {"name": "f", "parameters": "x"}}], r"parameters is str"),
        ([{"type": "function", "function": {"name": "f", "parameters": {"a": {1, 2}}}}], r"cannot be written as JSON"),
        ([{"type": "function", "function": {"name": "f", "description": "x" * 2_000_000}}], r"takes 2\d+ characters"),
        ([Tool("f"), Tool("f")], r"tools\[1\] is called 'f', as an earlier one is"),
        ([Tool("a b")], r"tools\[0\]\.name is 'a b'"),
        ([Tool(f"f{index}") for index in range(2000)], "tools has 2000 entries"),
    ],
)
def test_a_wrong_tool_is_refused_with_its_place(values: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_tools(values)
