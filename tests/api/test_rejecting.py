"""The best of several answers, batch by batch: what was drawn is not lost, and goes on to the bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from cli.chat_model import write
from herd.api.tuning_reject import DRAWN, reject
from herd.api.tuning_run import Conduct
from herd.errors import UsageError
from herd.training.running.loop import Told
from herd.training.settings.rejection import RejectionSettings


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


def test_what_a_prompt_offers_is_written_down_with_its_answer(settings: RejectionSettings, tmp_path: Path) -> None:
    data, out = tmp_path / "asked.jsonl", tmp_path / "made.jsonl"
    turns = [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]
    data.write_text(json.dumps({"messages": turns, "answer": "x"}) + "\n")
    reject(replace(settings, data=(str(data),), answers=1), out)
    assert all(json.loads(line)["messages"][:2] == turns for line in out.read_text().splitlines())
