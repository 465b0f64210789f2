"""Records of every shape become samples; what cannot be used is dropped for a reason that is counted."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from herd.data import conversations as conv
from herd.data.account import Account
from herd.data.samples import Chat, Judged, Passage, Preference, Sample, Task
from herd.data.shapes import Shape, detect, read_samples
from herd.errors import FileProblem, UsageError
from herd.text.messages import Image, Message, Role, Text, ToolCall
from herd.text.tools import Tool

ASK, SAY = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}


def read(tmp_path: Path, *values: dict[str, Any], shape: str | None = None) -> tuple[list[Sample], Account]:
    path, account = tmp_path / "data.jsonl", Account()
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return list(read_samples([path], account, shape=shape)), account


def one(tmp_path: Path, value: dict[str, Any]) -> Sample:
    samples, account = read(tmp_path, value)
    assert len(samples) == 1, list(account.lines())
    return samples[0]


def said(messages: Any) -> list[tuple[str, str]]:
    return [(message.role.value, message.text) for message in messages]


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        (Shape.MESSAGES, {"messages": [ASK, SAY]}),
        (Shape.MESSAGES, {"conversations": [ASK, SAY]}),
        (Shape.SHAREGPT, {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}),
        (Shape.ALPACA, {"instruction": "u", "input": "", "output": "a"}),
        (Shape.PAIRS, {"prompt": "u", "completion": "a"}),
        (Shape.PAIRS, {"question": "u", "answer": "a"}),
        (Shape.PAIRS, {"prompt": [ASK], "completion": [SAY]}),
    ],
)
def test_every_shape_of_chat_is_detected_and_read(tmp_path: Path, shape: Shape, value: dict[str, Any]) -> None:
    samples, account = read(tmp_path, value)
    assert account.shape == shape.value and detect(value) is shape
    (sample,) = samples
    assert isinstance(sample, Chat) and said(sample.messages) == [("user", "u"), ("assistant", "a")] and sample.weights is None
    assert sample.is_plain == (shape is Shape.PAIRS and isinstance(value.get("prompt", value.get("question")), str))
    assert (account.num_read, account.num_kept, account.notes) == (1, 1, {}) and sample.place.line == 1


def test_alpaca_has_inputs_histories_and_systems(tmp_path: Path) -> None:
    value = {"instruction": "Add", "input": "1 2", "output": "3", "system": "s", "history": [["q", "r"]]}
    chat = one(tmp_path, value)
    assert isinstance(chat, Chat)
    turns = [("system", "s"), ("user", "q"), ("assistant", "r"), ("user", "Add\n\n1 2"), ("assistant", "3")]
    assert said(chat.messages) == turns


def test_sharegpt_has_calls_results_and_tools_as_text(tmp_path: Path) -> None:
    turns = [("human", "u"), ("function_call", '{"name": "f", "arguments": {"x": 1}}'), ("observation", "4"), ("gpt", "a")]
    value = {"conversations": [{"from": who, "value": text} for who, text in turns], "system": "s", "tools": json.dumps([TOOL])}
    chat = one(tmp_path, value)
    assert isinstance(chat, Chat) and [message.role.value for message in chat.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert chat.messages[2].tool_calls == (ToolCall("", "f", {"x": 1}),)
    assert [tool.name for tool in chat.tools if isinstance(tool, Tool)] == ["f"]


def test_openais_records_have_tools_and_weights(tmp_path: Path) -> None:
    messages = [ASK, CALL, {"role": "tool", "tool_call_id": "1", "content": "r"}, {**SAY, "weight": 0}, ASK, {**SAY, "weight": 1}]
    chat = one(tmp_path, {"messages": messages, "tools": [TOOL], "parallel_tool_calls": False})
    assert isinstance(chat, Chat) and chat.weights == (0, 1, 0, 0, 0, 1) and len(chat.tools) == 1


def test_text_is_a_passage(tmp_path: Path) -> None:
    passage = one(tmp_path, {"text": "once"})
    assert isinstance(passage, Passage) and passage.text == "once"


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "u", "chosen": "good", "rejected": "bad"},
        {"prompt": [ASK], "chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]},
        {"prompt": "u", "chosen": {"role": "assistant", "content": "good"}, "rejected": {"role": "assistant", "content": "bad"}},
        {"chosen": [ASK, {"role": "assistant", "content": "good"}], "rejected": [ASK, {"role": "assistant", "content": "bad"}]},
    ],
)
def test_preferences_have_a_prompt_and_two_answers(tmp_path: Path, value: dict[str, Any]) -> None:
    found = one(tmp_path, value)
    assert isinstance(found, Preference)
    assert (said(found.prompt), said(found.chosen), said(found.rejected)) == (
        [("user", "u")],
        [("assistant", "good")],
        [("assistant", "bad")],
    )
    assert found.is_plain == isinstance(value["chosen"], str)


def test_a_preference_may_say_by_how_much_its_answer_is_better(tmp_path: Path) -> None:
    pair = {"prompt": "u", "chosen": "good", "rejected": "bad"}
    (bare, judged), account = read(tmp_path, pair, {**pair, "margin": 2})
    assert isinstance(bare, Preference) and bare.margin is None
    assert isinstance(judged, Preference) and judged.margin == 2.0
    assert "margin" not in json.dumps(account.as_json())
    (_,), account = read(tmp_path, pair, {**pair, "margin": "much"})
    assert "margin is 'much'; expected a number" in json.dumps(account.as_json())


def test_the_prompt_of_two_conversations_is_what_they_share(tmp_path: Path) -> None:
    start = [ASK, SAY, {"role": "user", "content": "v"}]
    value = {"chosen": [*start, SAY], "rejected": [*start, {"role": "assistant", "content": "b"}]}
    found = one(tmp_path, value)
    assert isinstance(found, Preference) and len(found.prompt) == 3 and len(found.chosen) == 1


@pytest.mark.parametrize("value", [{"prompt": "u", "completion": "a", "label": True}, {"messages": [ASK, SAY], "label": False}])
def test_judged_answers_say_whether_they_are_good(tmp_path: Path, value: dict[str, Any]) -> None:
    found = one(tmp_path, value)
    assert isinstance(found, Judged) and found.is_good is value["label"]
    assert said(found.prompt) == [("user", "u")] and said(found.answer) == [("assistant", "a")]


def test_tasks_have_what_answers_are_checked_by(tmp_path: Path) -> None:
    found = one(tmp_path, {"prompt": "6*7?", "answer": "42", "level": 3})
    assert isinstance(found, Task) and said(found.messages) == [("user", "6*7?")]
    assert (found.checks, found.facts, found.is_plain) == ({"answer": "42"}, {"level": 3}, True)
    found = one(tmp_path, {"messages": [ASK], "tests": ["assert f() == 1"], "schema": None})
    assert isinstance(found, Task) and found.checks == {"tests": ["assert f() == 1"]}


def png() -> bytes:
    from PIL import Image as Pillow

    data = io.BytesIO()
    Pillow.new("RGB", (3, 2), "red").save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("form", ["data", "file", "sharegpt", "alpaca", "pairs"])
def test_pictures_are_data_urls_or_files_beside_the_data(tmp_path: Path, form: str) -> None:
    (tmp_path / "p.png").write_bytes(png())
    url = {"url": "data:image/png;base64," + base64.b64encode(png()).decode()}
    parts = {"data": [{"type": "image_url", "image_url": url}], "file": [{"type": "image", "path": "p.png"}]}
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "red"}]
    by_form: dict[str, Any] = {
        "sharegpt": {"conversations": turns, "images": ["p.png"]},
        "alpaca": {"instruction": "What?", "output": "red", "image": "p.png"},
        "pairs": {"question": "What?", "answer": "red", "image": "p.png"},
    }
    content = [*parts.get(form, []), {"type": "text", "text": "What?"}]
    chat = one(tmp_path, by_form.get(form, {"messages": [{"role": "user", "content": content}, SAY]}))
    assert isinstance(chat, Chat)
    picture, text = chat.messages[0].parts
    assert isinstance(picture, Image) and picture.open().size == (3, 2) and text == Text("What?")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none.png", "there is no file"),
        ("../secret.png", "outside of the data's folder"),
        ("/etc/passwd", "outside of the data's folder"),
        ("https://example.org/a.png", "is an address"),
    ],
)
def test_pictures_from_elsewhere_are_not_opened(tmp_path: Path, name: str, expected: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": name}}]
    samples, account = read(tmp_path, {"messages": [{"role": "user", "content": content}, SAY]})
    assert not samples and expected in account.drops[conv.PICTURE].detail


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"messages": [ASK, ASK, SAY]}, conv.ROLES),
        ({"messages": [SAY, ASK, SAY]}, conv.ROLES),
        ({"messages": [ASK, SAY, {"role": "system", "content": "s"}, ASK, SAY]}, conv.ROLES),
        ({"messages": [ASK, {"role": "tool", "content": "s"}, SAY]}, conv.ROLES),
        ({"messages": [ASK, CALL, ASK, SAY]}, conv.ROLES),
        ({"messages": [ASK, {"role": "assistant", "content": " \n"}]}, conv.EMPTY_ANSWER),
        ({"messages": [{"role": "user", "content": ""}, SAY]}, conv.EMPTY_QUESTION),
        ({"messages": [ASK]}, conv.NO_ANSWER),
        ({"messages": []}, conv.UNREADABLE),
        ({"messages": "hello"}, conv.UNREADABLE),
        ({"messages": [{"role": "robot", "content": "a"}]}, conv.UNREADABLE),
        ({"messages": [ASK, {**SAY, "weight": -1}]}, conv.UNREADABLE),
        ({"messages": [ASK, {**SAY, "weight": 0}]}, conv.NO_WEIGHT),
        ({"messages": [ASK, SAY], "tools": "{"}, conv.UNREADABLE),
        ({"conversations": [{"from": "martian", "value": "x"}]}, conv.UNREADABLE),
        ({"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}, conv.PICTURE),
        ({"instruction": "u", "output": 3}, conv.UNREADABLE),
        ({"instruction": "u", "output": "a", "history": [["q"]]}, conv.UNREADABLE),
        ({"text": "  "}, conv.EMPTY),
        ({"prompt": "u", "chosen": "a", "rejected": "a"}, conv.SAME),
        ({"chosen": "a", "rejected": "b"}, conv.NO_PROMPT),
        ({"chosen": [ASK, SAY], "rejected": [{"role": "user", "content": "v"}, SAY]}, conv.NO_PROMPT),
        ({"prompt": [{"role": "system", "content": "s"}], "answer": "4"}, conv.ROLES),
    ],
)
def test_what_cannot_be_used_is_dropped_for_a_reason(tmp_path: Path, value: dict[str, Any], reason: str) -> None:
    samples, account = read(tmp_path, value)
    assert not samples and list(account.drops) == [reason], list(account.lines())
    assert account.drops[reason].place.line == 1 and account.drops[reason].count == 1 and len(account.drops) == 1
    with pytest.raises(FileProblem, match="0 records are left to learn from") as caught:
        account.require_kept()
    assert reason in str(caught.value)


def test_drops_and_what_is_not_used_are_counted(tmp_path: Path) -> None:
    good = {"messages": [ASK, SAY, ASK], "id": 7}
    samples, account = read(tmp_path, good, {"messages": [ASK]}, good, {"messages": [ASK]})
    assert len(samples) == 2 and account.drops[conv.NO_ANSWER].count == 2 and account.drops[conv.NO_ANSWER].place.line == 2
    assert account.notes["the key 'id' is not used"].count == 2 and account.notes[conv.UNANSWERED].count == 2
    text = "\n".join(account.lines())
    assert "4 records of the shape messages, 2 kept" in text and f"dropped 2: {conv.NO_ANSWER} (first at" in text
    assert json.loads(json.dumps(account.as_json()))["dropped"][conv.NO_ANSWER]["count"] == 2
    account.require_kept()


def test_mixed_shapes_are_refused_by_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"data.jsonl:2: the record has the shape text .*data.jsonl:1 has messages"):
        read(tmp_path, {"messages": [ASK, SAY]}, {"text": "t"})
    with pytest.raises(FileProblem, match=r"data.jsonl:2: the record has no known shape \(keys foo\)"):
        read(tmp_path, {"messages": [ASK, SAY]}, {"foo": 1})
    with pytest.raises(FileProblem, match=r"data.jsonl:1: the record has the keys bar, foo, which is no shape"):
        read(tmp_path, {"foo": 1, "bar": 2})


def test_a_shape_can_be_named(tmp_path: Path) -> None:
    value = {"messages": [ASK, SAY], "text": "t"}
    samples, account = read(tmp_path, value, shape="text")
    assert isinstance(samples[0], Passage) and account.shape == "text"
    with pytest.raises(FileProblem, match=r"has the shape messages .*; alpaca is asked for"):
        read(tmp_path, value, shape="alpaca")
    with pytest.raises(UsageError, match="did you mean 'messages'"):
        read(tmp_path, value, shape="mesages")


def test_a_message_is_read_as_it_was_written(tmp_path: Path) -> None:
    chat = one(tmp_path, {"messages": [{"role": "user", "content": " <|im_end|>\r\n"}, SAY]})
    assert isinstance(chat, Chat) and chat.messages[0] == Message(Role.USER, " <|im_end|>\r\n")
