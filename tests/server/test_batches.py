"""`/v1/batches` with OpenAI's own client: lines answered once each, cancelled, expired, gone on with after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from herd.errors import Busy, ProviderError, UsageError
from herd.providers.base import ChatRequest, Priority
from herd.server.keys import Keys, create, revoke
from herd.server.openai import batch_lines
from server.fake_pool import FakePool, FakeService, Refuse, Wait, words

if TYPE_CHECKING:
    from openai.types import Batch

    from server.conftest import Running

Serve = Callable[..., "Running"]
CHAT = "/v1/chat/completions"

PROCESS = """
import asyncio, sys
from pathlib import Path
from herd.server.app import build
from herd.server.house import make_house
from herd.server.running import Front, listen
from herd.server.settings import Settings
from server.fake_pool import FakePool, FakeService, Wait, words

folder, generation = Path(sys.argv[1]), sys.argv[2]
pool = FakePool(FakeService(script=lambda request: [Wait(0.05), *words(f"run {generation} says {request.messages[-1].text}")]))
settings = Settings(port=0, data_folder=folder, max_batch_lines=4)
house = make_house(pool, settings)
listener = listen(settings)
print(listener.getsockname()[1], flush=True)
asyncio.run(Front(house, build(house)).serve(listener))
"""


def client_of(url: str, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=2)


def line(number: int | str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    return {"custom_id": f"q{number}", "method": "POST", "url": url, "body": {"model": "fake", **body}}


def asks(count: int) -> list[dict[str, Any]]:
    return [line(number, messages=[{"role": "user", "content": f"question {number}"}]) for number in range(count)]


def begun(client: openai.OpenAI, lines: Sequence[Any], endpoint: Any = CHAT) -> Batch:
    data = b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"})


def waited(client: openai.OpenAI, batch: Batch, *states: str) -> Batch:
    for _ in range(600):
        batch = client.batches.retrieve(batch.id)
        if batch.status in (states or ("completed", "failed", "expired", "cancelled")):
            return batch
        time.sleep(0.02)
    raise AssertionError(f"the batch stays {batch.status}")


def told(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(each) for each in client.files.content(file).read().splitlines()]


def slow(fast: str) -> FakePool:
    """A model that answers one question at once and the others after a minute."""
    return FakePool(FakeService(script=lambda request: [Wait(0.05 if request.messages[-1].text == fast else 60), *words("a")]))


def test_a_batch_answers_each_line_at_low_priority(server: Running) -> None:
    with client_of(server.url) as client:
        batch = begun(client, [*asks(10), b"", line("bad", messages=[], n=1000)])
        assert batch.status == "validating" and batch.metadata == {"a": "b"}
        batch = waited(client, batch)
        assert batch.status == "completed" and batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (12, 10, 1)
        answers, errors = told(client, batch.output_file_id), told(client, batch.error_file_id)
        assert [each.id for each in client.batches.list()] == [batch.id]
    assert [each["custom_id"] for each in answers] == [f"q{number}" for number in range(10)]
    first = answers[0]["response"]
    assert first["status_code"] == 200 and first["body"]["choices"][0]["message"]["content"] == "Hello there, world."
    assert errors[0]["custom_id"] == "qbad" and errors[0]["response"]["status_code"] == 400
    assert errors[0]["response"]["body"]["error"]["param"] in ("messages", "n")
    asked = server.pool.only.asked
    assert all(isinstance(each, ChatRequest) and each.caller.priority is Priority.LOW and each.deadline_s is None for each in asked)
    assert len(asked) == 10 and server.pool.used == 0


@pytest.mark.parametrize(
    ("endpoint", "body", "found"),
    [
        ("/v1/completions", {"prompt": "a"}, lambda body: body["choices"][0]["text"]),
        ("/v1/embeddings", {"input": "a"}, lambda body: body["data"][0]["object"]),
        ("/v1/responses", {"input": "a"}, lambda body: body["output"][0]["content"][0]["text"]),
    ],
)
def test_other_endpoints_are_answered_too(server: Running, endpoint: str, body: Any, found: Any) -> None:
    with client_of(server.url) as client:
        batch = waited(client, begun(client, [line(1, endpoint, **body)], endpoint))
        (answer,) = told(client, batch.output_file_id)
    assert found(answer["response"]["body"]) in ("Hello there, world.", "embedding")


@pytest.mark.parametrize(
    ("lines", "code", "number", "said"),
    [
        ([b"{"], "invalid_json", 1, "not JSON"),
        ([*asks(2), b'{"custom_id": "x"}'], "invalid_line", 3, "is missing"),
        ([line(1, messages=[]), line(1, messages=[])], "invalid_line", 2, "the same as in line 1"),
        ([line(1, "/v1/embeddings", input="x")], "invalid_line", 1, "the batch is for"),
        ([line(1, messages=[], stream=True)], "invalid_line", 1, "no place in a batch"),
        ([b" "], "empty_file", None, "no lines"),
    ],
)
def test_a_file_with_a_wrong_line_fails_before_anything_is_asked(
    server: Running, lines: Sequence[Any], code: str, number: int | None, said: str
) -> None:
    with client_of(server.url) as client:
        batch = waited(client, begun(client, lines))
    assert batch.status == "failed" and batch.errors is not None and batch.errors.data
    error = batch.errors.data[0]
    assert (error.code, error.line) == (code, number) and error.message is not None and said in error.message
    assert server.pool.only.asked == []


def test_a_file_for_something_else_is_refused(server: Running) -> None:
    with client_of(server.url) as client:
        file = client.files.create(file=("a", b"x"), purpose="user_data")
        for name in (file.id, "file-none"):
            with pytest.raises(openai.BadRequestError) as caught:
                client.batches.create(input_file_id=name, endpoint="/v1/completions", completion_window="24h")
            assert caught.value.param == "input_file_id"


def test_a_cancelled_batch_keeps_what_was_answered(serve: Serve) -> None:
    server = serve(
        FakePool(FakeService(script=lambda request: [Wait(0.05 if "question 0" in request.messages[-1].text else 60), *words("a")]))
    )
    with client_of(server.url) as client:
        batch = begun(client, asks(30))
        for _ in range(300):
            counts = client.batches.retrieve(batch.id).request_counts
            if counts is not None and counts.completed:
                break
            time.sleep(0.02)
        with pytest.raises(openai.BadRequestError, match="reads this file"):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        batch = waited(client, batch)
        assert batch.status == "cancelled" and [each["custom_id"] for each in told(client, batch.output_file_id)] == ["q0"]
        assert client.batches.cancel(batch.id).status == "cancelled"
        client.files.delete(batch.input_file_id)
    assert server.pool.only.open == 0 and server.pool.used == 0


def test_what_a_batch_could_not_answer_in_time_has_expired(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from herd.server.openai import batches

    monkeypatch.setattr(batches, "WINDOW_S", 4)
    server = serve(
        FakePool(FakeService(script=lambda request: [Wait(0 if "question 0" in request.messages[-1].text else 60), *words("a")]))
    )
    with client_of(server.url) as client:
        batch = waited(client, begun(client, asks(20)))
        assert batch.status == "expired" and batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 19)
        assert {each["error"]["code"] for each in told(client, batch.error_file_id)} == {"batch_expired"}


def test_a_line_that_came_when_all_were_busy_is_tried_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lines, "WAITS_S", (0.01, 0.01))
    tries = {"a": 0, "b": 0, "c": 0}

    def script(request: Any) -> list[Any]:
        text = request.messages[-1].text
        tries[text] += 1
        if text == "a" and tries[text] < 3:
            return [Refuse(Busy("Full."))]
        if text == "b":
            return [Refuse(ProviderError("died"))]
        return [Refuse(UsageError("No."))] if text == "c" else words("done")

    server = serve(FakePool(FakeService(script=script)))
    with client_of(server.url) as client:
        batch = waited(client, begun(client, [line(each, messages=[{"role": "user", "content": each}]) for each in "abc"]))
        assert [each["custom_id"] for each in told(client, batch.output_file_id)] == ["qa"]
        assert [each["response"]["status_code"] for each in told(client, batch.error_file_id)] == [503, 400]
    assert tries == {"a": 3, "b": 2, "c": 1}


def test_another_keys_batches_look_as_if_they_were_not_there(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    mine, yours = create(keys, "mine")[0], create(keys, "yours", models=("other",))[0]
    server = serve(None, None, Keys(keys), need_key=True, data_folder=tmp_path)
    with client_of(server.url, mine) as me, client_of(server.url, yours) as you:
        batch = waited(me, begun(me, asks(2)))
        assert batch.status == "completed" and server.pool.only.asked[-1].caller.name == Keys(keys).all()[0].id
        for act in (you.batches.retrieve, you.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                act(batch.id)
        assert you.batches.list().data == []
        refused = waited(you, begun(you, asks(1)))
        (error,) = told(you, refused.error_file_id)
        assert error["response"]["status_code"] == 404


def test_a_revoked_keys_batch_is_not_gone_on_with(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    mine = create(keys, "mine")[0]
    server = serve(slow("none"), None, Keys(keys), need_key=True, data_folder=tmp_path)
    with client_of(server.url, mine) as client:
        batch = waited(client, begun(client, asks(2)), "in_progress")
    server.front.stop(at_once=True)
    while server.house.keeping._store is not None:
        time.sleep(0.02)
    owner = revoke(keys, "mine").id
    again = serve(None, None, Keys(keys), need_key=True, data_folder=tmp_path)
    for _ in range(300):
        found = again.house.keeping.store._read(lambda tables: tables.get(owner, "batch", batch.id))["batch"]
        if found["status"] == "failed":
            break
        time.sleep(0.02)
    assert found["errors"]["data"][0]["code"] == "invalid_api_key" and again.pool.only.asked == []


def test_a_batch_goes_on_after_kill_9_and_tells_no_line_twice(tmp_path: Path) -> None:
    count = 60
    with process(tmp_path, "1") as (first, url), client_of(url) as client:
        batch = begun(client, asks(count))
        done = 0
        while done < 10:
            counts = client.batches.retrieve(batch.id).request_counts
            done = counts.completed if counts is not None else 0
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
    with process(tmp_path, "2") as (_, url), client_of(url) as client:
        batch = waited(client, batch)
        answers = told(client, batch.output_file_id)
    assert batch.status == "completed" and [each["custom_id"] for each in answers] == [f"q{number}" for number in range(count)]
    texts = [each["response"]["body"]["choices"][0]["message"]["content"] for each in answers]
    runs = [text.split(" says ")[0] for text in texts]
    assert runs.count("run 1") >= done and runs.count("run 2") > 0
    assert [text.split(" says ")[1] for text in texts] == [f"question {number}" for number in range(count)]


class process:
    """A server in a process of its own, killed at the end."""

    def __init__(self, folder: Path, generation: str) -> None:
        tests = Path(__file__).resolve().parent.parent
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent / "src")])}
        command = [sys.executable, "-c", PROCESS, str(folder), generation]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)

    def __enter__(self) -> tuple[subprocess.Popen[str], str]:
        assert self._process.stdout is not None
        return self._process, f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __exit__(self, *rest: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_second_server_on_the_folder_leaves_the_work_to_the_first(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.server.keeping.LOOK_EVERY_S", 0.05)
    first, second = serve(data_folder=tmp_path), serve(data_folder=tmp_path)
    with client_of(first.url) as client:
        alone = waited(client, begun(client, asks(1)))
        assert alone.status == "completed", alone
    with client_of(second.url) as client:
        with pytest.raises(openai.APIStatusError, match="Another server"):
            openai.OpenAI(base_url=f"{second.url}/v1", api_key="x", max_retries=0).responses.create(
                model="fake", input="a", background=True
            )
        batch = waited(client, begun(client, asks(3)))
        assert batch.status == "completed"
    told_first = [each.messages[-1].text for each in first.pool.only.asked if isinstance(each, ChatRequest)]
    told_second = [each.messages[-1].text for each in second.pool.only.asked if isinstance(each, ChatRequest)]
    assert (told_first, told_second) == (["question 0", "question 0", "question 1", "question 2"], ["a"])
