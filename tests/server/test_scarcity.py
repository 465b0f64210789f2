"""What a server does when the system has no more threads, processes or files for it: it says so with a 503, lives, and goes on later."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import subprocess
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from herd.errors import CapacityError, EngineLost, HerdError, lack
from herd.providers.frames import Problem
from herd.providers.process import EngineOptions
from herd.providers.supervisor import Supervisor
from herd.server.errors import api_error
from server.bodies import TURN, VALID
from server.raw import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.conftest import Running

Serve = Callable[..., "Running"]
CHAT = "/v1/chat/completions"
NO_THREAD = RuntimeError("can't start new thread")


@contextmanager
def no_more(monkeypatch: pytest.MonkeyPatch, target: object, name: str, problem: BaseException) -> Iterator[None]:
    """A call of Python's fails, as it does where the system has nothing left."""

    def fail(*arguments: Any, **named: Any) -> None:
        raise problem

    with monkeypatch.context() as patched:
        patched.setattr(target, name, fail)
        yield


def no_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    return no_more(monkeypatch, threading, "_start_new_thread", NO_THREAD)


def no_processes(monkeypatch: pytest.MonkeyPatch) -> Any:
    return no_more(monkeypatch, subprocess, "Popen", BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"))


def large(num_bytes: int = 1_500_000) -> dict[str, Any]:
    """A request that is read by a thread of its own."""
    return {**VALID[CHAT], "messages": [{"role": "user", "content": "x" * num_bytes}]}


@pytest.mark.parametrize(
    ("problem", "what"),
    [
        (NO_THREAD, "threads"),
        (RuntimeError("Resource temporarily unavailable"), "threads"),
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
        (OSError(errno.ENFILE, "Too many open files in system"), "open files"),
    ],
)
def test_what_the_system_lacks_is_a_503_wherever_it_is_met(problem: Exception, what: str) -> None:
    told = api_error(problem)
    assert told.status == 503 and what in told.message and told.retry_after_s is not None
    from_the_engine = Problem.of(problem).error
    assert isinstance(from_the_engine, CapacityError) and what in str(from_the_engine)


def test_other_problems_stay_what_they_are() -> None:
    for problem in (
        RuntimeError("dictionary changed size"),
        OSError(errno.ENOENT, "No such file"),
        KeyError("x"),
        OSError("odd"),
        BlockingIOError(errno.EAGAIN, "x"),
    ):
        assert lack(problem) is None and api_error(problem).status == 500


def test_without_threads_a_request_is_refused_for_now_and_the_server_lives(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    with no_threads(monkeypatch), caplog.at_level(logging.ERROR, "herd.server"):
        refused = httpx.post(f"{server.url}{CHAT}", json=large())
        assert refused.status_code == 503 and "no threads left" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.post(f"{server.url}{CHAT}", json=VALID[CHAT]).status_code == 200, "what needs no thread is answered"
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert "no threads left" in caplog.text and "Traceback" not in caplog.text
    assert httpx.post(f"{server.url}{CHAT}", json=large()).status_code == 200


def test_without_threads_nothing_is_kept_and_later_it_is(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = serve(data_folder=tmp_path)
    body = {"model": "fake", "input": "Hi"}
    with no_threads(monkeypatch):
        assert httpx.post(f"{server.url}/v1/responses", json=body).status_code == 503
        assert httpx.post(f"{server.url}/v1/responses", json={**body, "store": False}).status_code == 200
        assert httpx.get(f"{server.url}/v1/files").status_code == 503
    made = httpx.post(f"{server.url}/v1/responses", json=body)
    assert made.status_code == 200
    assert httpx.get(f"{server.url}/v1/responses/{made.json()['id']}").status_code == 200


def test_a_server_whose_store_finds_no_thread_at_its_start_opens_it_later(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("herd.server.keeping.LOOK_EVERY_S", 0.05)
    first = serve(data_folder=tmp_path)
    made = httpx.post(f"{first.url}/v1/responses", json={"model": "fake", "input": "Hi"}).json()["id"]
    with monkeypatch.context() as patched:

        async def fail(*arguments: Any) -> None:
            raise NO_THREAD

        patched.setattr(asyncio, "to_thread", fail)
        second = serve(data_folder=tmp_path)
    assert until(lambda: httpx.get(f"{second.url}/v1/responses/{made}").status_code == 200, 10)


def test_a_model_whose_process_cannot_be_started_is_refused_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        with pytest.raises(CapacityError, match="process cannot be started"):
            await Supervisor(EngineOptions(model="any")).start()

    with no_processes(monkeypatch):
        asyncio.run(use())


class Scripted:
    """Processes of an engine that can only be started when `is_possible`; the last one is `now`."""

    def __init__(self) -> None:
        self.is_possible = True
        self.tries = 0
        self.now: Any = None

    def __call__(self, begin: object, *, frame: Any, ended: Any, **named: Any) -> Any:
        self.tries += 1
        if not self.is_possible:
            raise CapacityError("The engine's process cannot be started.")
        self.now = _Life(frame, ended)
        return self.now


class _Life:
    process_id = 1

    def __init__(self, frame: Any, ended: Any) -> None:
        from herd.providers.base import ModelFacts
        from herd.providers.frames import Ready

        self.born_at = 0.0
        self.ended = ended
        facts = ModelFacts(name="m", context_length=8, vocab_size=8, fingerprint="f")
        asyncio.get_running_loop().call_soon(frame, Ready(facts))

    def write(self, data: bytes) -> None: ...

    async def aclose(self) -> None: ...


def test_an_engine_that_dies_when_no_process_can_be_started_is_back_when_one_can() -> None:
    async def use() -> None:
        start = Scripted()
        service = Supervisor(EngineOptions(model="any", pauses_s=(0.0, 0.01)), start)
        await service.start()
        start.is_possible = False
        start.now.ended(start.now)
        while start.tries < 5:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineLost, match="times in a row"):
            await service.encode("x")
        start.is_possible = True
        while not service.is_up:
            await asyncio.sleep(0.01)
        await service.aclose()

    asyncio.run(asyncio.wait_for(use(), 20))


def test_a_batch_that_meets_a_lack_of_threads_goes_on(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("herd.server.keeping.LOOK_EVERY_S", 0.05)
    server = serve(data_folder=tmp_path)
    lines = [{"custom_id": str(n), "method": "POST", "url": CHAT, "body": {"model": "fake", "messages": TURN}} for n in range(3)]
    file = httpx.post(
        f"{server.url}/v1/files",
        data={"purpose": "batch"},
        files={"file": ("b.jsonl", "\n".join(map(json.dumps, lines)).encode())},
    ).json()["id"]
    problems: list[HerdError] = []
    store = server.house.keeping.store
    read = store.read

    async def seldom(work: Any) -> Any:
        if len(problems) < 6:
            problems.append(CapacityError("no threads"))
            raise problems[-1]
        return await read(work)

    ask = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    key = httpx.post(f"{server.url}/v1/batches", json=ask).json()["id"]
    monkeypatch.setattr(store, "read", seldom)

    def is_over() -> bool:
        return bool(httpx.get(f"{server.url}/v1/batches/{key}").json().get("status") == "completed")

    assert until(is_over, 20) and len(problems) == 6
