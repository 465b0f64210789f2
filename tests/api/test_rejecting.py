"""The best of several answers, batch by batch: what was drawn is not lost, and goes on to the bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from cli.chat_model import write
from herd.api.tuning_reject import DRAWN, _record, reject
from herd.api.tuning_run import Conduct
from herd.data.account import Account
from herd.data.reading import Place
from herd.data.samples import Chat, Task
from herd.data.shapes import read_samples
from herd.errors import UsageError
from herd.images.decode import open_image
from herd.training.recipes.grpo import Problem
from herd.training.recipes.rejection import CUT, EMPTY, TWICE, WORSE, Chosen, _chosen
from herd.training.running.loop import Told
from herd.training.settings.rejection import RejectionSettings
from herd.training.settings.rewards import RewardSettings
from herd.training.signals.rewards import Answer
from herd.training.signals.rollouts import Prompt


class Killed(BaseException):
    """What nobody catches."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RejectionSettings:
    folder = tmp_path_factory.mktemp("rejecting")
    prompts = [{"prompt": letter} for letter in "abcde"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    model = str(write(folder / "base"))
    return RejectionSettings(model=model, data=(str(folder / "prompts.jsonl"),), answers=2, batch=2, max_tokens=30)


@pytest.fixture(scope="module")
def whole(settings: RejectionSettings, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What is written when nothing happens."""
    out = tmp_path_factory.mktemp("whole") / "made.jsonl"
    told: list[Told] = []
    found = reject(settings, out, Conduct(told=told.append))
    assert found.is_complete and found.asked == 5 and [each.step for each in told] == [2, 4, 5] and told[-1].left_s == 0
    assert [path.name for path in out.parent.iterdir()] == ["made.jsonl"]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == found.kept > 0 and all(record["messages"][-1]["role"] == "assistant" for record in records)
    return out.read_bytes()


def at_step(number: int, work: Any) -> Conduct:
    def told(news: Told) -> None:
        if news.step == number:
            work()

    return Conduct(told=told)


def die() -> None:
    raise Killed


@pytest.mark.parametrize("litter", [b"", b'{"done": 5, "drawn"', b"\0\0\0\0\n"], ids=["between lines", "a line cut", "a line lost"])
def test_who_was_killed_goes_on_to_the_same_bytes(litter: bytes, settings: RejectionSettings, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "made.jsonl"
    with pytest.raises(Killed):
        reject(settings, out, at_step(4, die))
    assert not out.exists()
    drawn = tmp_path / "made.jsonl.run" / DRAWN
    assert [json.loads(line)["done"] for line in drawn.read_text().splitlines()] == [2, 4]
    with drawn.open("ab") as file:
        file.write(litter)
    with pytest.raises(UsageError, match=r"made\.jsonl\.run holds a run already \(interrupted\).*--resume"):
        reject(settings, out)
    with pytest.raises(UsageError, match=r"temperature: 1\.0 then, 0\.5 now"):
        reject(replace(settings, temperature=0.5), out, Conduct(resume=True))
    told: list[Told] = []
    found = reject(settings, out, Conduct(resume=True, told=told.append))
    assert out.read_bytes() == whole and [each.step for each in told] == [5] and found.asked == 5
    assert not drawn.parent.exists()


def test_who_is_asked_to_stop_keeps_the_batch(settings: RejectionSettings, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "made.jsonl"
    found = reject(settings, out, at_step(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert not found.is_complete and found.asked == 2 and not out.exists()
    assert json.loads((tmp_path / "made.jsonl.run" / "end.json").read_text())["state"] == "stopped"
    assert reject(settings, out, Conduct(resume=True)).is_complete and out.read_bytes() == whole


def test_what_a_prompt_has_is_written_down_with_its_answer(settings: RejectionSettings, tmp_path: Path) -> None:
    data, out = tmp_path / "asked.jsonl", tmp_path / "made.jsonl"
    turns = [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]
    data.write_text(json.dumps({"messages": turns, "answer": "x"}) + "\n")
    found = reject(replace(settings, data=(str(data),), answers=16), out)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert found.kept == len(records) > 0 and all(record["messages"][:2] == turns for record in records)


@pytest.mark.parametrize("place", [".", "elsewhere"])
def test_tools_calls_and_pictures_of_a_prompt_are_read_again_as_they_were(place: str, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), "red").save(tmp_path / "dog.png")
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    seen = [{"type": "text", "text": "What is it?"}, {"type": "image", "image": "dog.png"}]
    asked = [
        {"role": "user", "content": seen},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": asked, "tools": [tool], "answer": "x"}) + "\n")
    (task,) = read_samples([tmp_path / "asked.jsonl"], Account())
    assert isinstance(task, Task)
    made = tmp_path / place / "made.jsonl"
    made.parent.mkdir(exist_ok=True)
    made.write_text(json.dumps(_record(Chosen(Problem(task, Prompt((1,))), "A dog.", 1.0), made.parent)) + "\n")
    (chat,) = read_samples([made], Account())
    assert isinstance(chat, Chat)
    assert chat.tools == task.tools and chat.messages[-1].text == "A dog."
    for mine, theirs in zip(chat.messages[:-1], task.messages, strict=True):
        assert (mine.role, mine.text, mine.tool_calls) == (theirs.role, theirs.text, theirs.tool_calls)
        assert mine.tool_call_id == theirs.tool_call_id and list(map(opened, mine.images)) == list(map(opened, theirs.images))


def opened(image: Any) -> bytes:
    return bytes(open_image(image.source).convert("RGB").tobytes())


def test_answers_that_are_left_out_are_counted_by_the_reason(settings: RejectionSettings, tmp_path: Path) -> None:
    found = reject(replace(settings, max_tokens=1), tmp_path / "cut.jsonl")
    assert found.kept == 0 and sum(found.left_out.values()) == 10 and found.left_out[CUT] > 5
    problem = Problem(Task(Place(Path("x"), 1), ()), Prompt((1,)))
    answers = [Answer("a"), Answer("b", is_cut=True), Answer(" "), Answer("a"), Answer("c"), Answer("d")]
    judged = replace(settings, rewards=(RewardSettings(kind="length"),), keep=2)
    why = [each.why_not for each in _chosen(judged, problem, answers, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])]
    assert why == ["", CUT, EMPTY, TWICE, "", WORSE]
