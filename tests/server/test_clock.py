"""Clocks that jump, an hour or ten years, forwards and back: only what is shown and what is a date follows them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from cli.running import STORIES, command, environment
from conformance.running import cpu_is_built
from herd.providers.base import Text
from herd.server import keys as keyring
from herd.server.dates import now
from herd.server.keys import Keys
from server.bodies import TURN, VALID
from server.fake_pool import FakePool, FakeService, Wait, words
from server.raw import until

if TYPE_CHECKING:
    from server.conftest import Running

Serve = Callable[..., "Running"]
CHAT = "/v1/chat/completions"
HOUR_S, TEN_YEARS_S = 3600.0, 10 * 365.25 * 86_400
JUMPS = (HOUR_S, -HOUR_S, TEN_YEARS_S, -TEN_YEARS_S, 2**31 - 1_790_000_000.0)
"""The last one leaves 31 bits behind, which is the year 2038."""
CLOCKS = re.compile(r"time\.time(_ns)?|(datetime\.)?(date\.today|datetime\.(now|utcnow))")
SOURCE = Path(__file__).resolve().parent.parent.parent / "src" / "herd"
READS_THE_WALL = {
    "engine/page_files.py": "times of files, which other processes wrote: what nobody goes on writing",
    "providers/pool.py": "`created` of models",
    "server/dates.py": "what the system says when a server begins",
    "server/house.py": "when the server started, as it is shown",
    "server/keys.py": "dates of keys",
    "server/metrics.py": "when the server started, as Prometheus wants it",
    "server/ollama/answers.py": "`created_at`",
    "server/openai/batch_work.py": "dates of keys",
    "server/openai/chat.py": "`created`",
    "server/openai/completions.py": "`created`",
    "server/page/routes.py": "the date of a plan",
}
"""The modules of a server that ask for the time of day, and what for. Everything else measures time that passes."""


class Jumping:
    """`time.time`, ahead of or behind the system's."""

    def __init__(self) -> None:
        self.by = 0.0
        self._now = time.time

    def __call__(self) -> float:
        return self._now() + self.by


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Jumping:
    found = Jumping()
    monkeypatch.setattr(time, "time", found)
    return found


def test_the_time_of_day_is_asked_for_dates_and_for_what_is_shown_only() -> None:
    found = set()
    for folder in ("server", "providers", "engine", "sampling"):
        for path in (SOURCE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Attribute) and CLOCKS.fullmatch(ast.unparse(node)):
                    found.add(path.relative_to(SOURCE).as_posix())
    assert found == set(READS_THE_WALL)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(keyring, "LOOK_AGAIN_S", 0.0)
    return tmp_path / "server" / "keys.json"


@pytest.mark.parametrize("limits", [{"requests_per_minute": 3}, {"tokens_per_minute": 24}], ids=["requests", "tokens"])
def test_a_jump_gives_no_key_more_and_takes_none_what_it_has(serve: Serve, file: Path, clock: Jumping, limits: dict[str, int]) -> None:
    text, _ = keyring.create(file, "mine", **limits)
    server = serve(keys=Keys(file), need_key=True)

    def ask() -> httpx.Response:
        return httpx.post(f"{server.url}{CHAT}", json=VALID[CHAT], headers={"authorization": f"Bearer {text}"})

    for jump in (TEN_YEARS_S, -TEN_YEARS_S, HOUR_S):
        assert ask().status_code == 200
        clock.by = jump
    for jump in (*JUMPS, 0.0):
        clock.by = jump
        refused = ask()
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60


@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_ends_no_answer_and_lengthens_none(serve: Serve, clock: Jumping, jump: float) -> None:
    def slowly(request: Any) -> list[Any]:
        clock.by += jump
        return [*words("one"), Wait(0.3), *words("two")]

    server = serve(FakePool(FakeService(script=slowly)), header_timeout_s=30, body_timeout_s=30)
    patient = httpx.post(f"{server.url}{CHAT}", json=VALID[CHAT], headers={"x-deadline-s": "30"})
    assert patient.status_code == 200 and patient.json()["choices"][0]["message"]["content"] == "onetwo"
    assert 0 < server.pool.only.asked[0].deadline_s <= 30


def test_time_that_a_client_has_for_its_head_does_not_jump(serve: Serve, clock: Jumping) -> None:
    from server.raw import connection, is_closed

    server = serve(header_timeout_s=0.8)
    with connection(server.port) as made:
        made.sendall(b"GET /health HTTP/1.1\r\nhost:")
        for jump in JUMPS:
            clock.by = jump
            time.sleep(0.02)
        made.sendall(b" 127.0.0.1\r\n\r\n")
        assert b"200 OK" in made.recv(4096)
    with connection(server.port) as made:
        began = time.monotonic()
        made.sendall(b"GET /health HTTP/1.1\r\n")
        clock.by = -TEN_YEARS_S
        assert is_closed(made, 10) and time.monotonic() - began < 5


def test_what_is_kept_outlives_a_jump_and_stays_in_order(serve: Serve, clock: Jumping, tmp_path: Path) -> None:
    server = serve(data_folder=tmp_path)
    made = []
    for jump in JUMPS:
        clock.by = jump
        file = {"file": (f"{jump}.txt", b"x")}
        made.append(httpx.post(f"{server.url}/v1/files", data={"purpose": "user_data"}, files=file).json()["id"])
    for jump in (*JUMPS, 0.0):
        clock.by = jump
        listed = httpx.get(f"{server.url}/v1/files", params={"order": "asc"}).json()["data"]
        assert [each["id"] for each in listed] == made
        answer = httpx.post(f"{server.url}/v1/responses", json={"model": "fake", "input": "Hi"}).json()
        clock.by = -clock.by
        follows = {"model": "fake", "input": "Hi", "previous_response_id": answer["id"]}
        assert httpx.post(f"{server.url}/v1/responses", json=follows).status_code == 200


def test_dates_of_what_is_kept_are_those_of_the_system_when_nothing_jumps(clock: Jumping) -> None:
    assert abs(now() - time.time()) < 60
    before = now()
    for clock.by in JUMPS:
        assert before <= now() < before + 60


def test_a_batch_in_its_work_is_done_though_the_clock_jumps(serve: Serve, clock: Jumping, tmp_path: Path) -> None:
    def slowly(request: Any) -> list[Any]:
        clock.by = JUMPS[len(server.pool.only.asked) % len(JUMPS)]
        return [Text("a"), Wait(0.02)]

    server = serve(FakePool(FakeService(script=slowly)), data_folder=tmp_path)
    lines = [{"custom_id": str(n), "method": "POST", "url": CHAT, "body": {"model": "fake", "messages": TURN}} for n in range(12)]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = httpx.post(f"{server.url}/v1/files", data={"purpose": "batch"}, files={"file": ("b.jsonl", content)}).json()["id"]
    ask = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    key = httpx.post(f"{server.url}/v1/batches", json=ask).json()["id"]

    def found() -> dict[str, Any]:
        return dict(httpx.get(f"{server.url}/v1/batches/{key}").json())

    assert until(lambda: found().get("status") in ("completed", "expired", "failed"), 20)
    assert found()["status"] == "completed" and found()["request_counts"] == {"total": 12, "completed": 12, "failed": 0}


def test_a_key_expires_on_its_date(serve: Serve, file: Path, clock: Jumping) -> None:
    text, _ = keyring.create(file, "mine", expires=int(time.time()) + 1000)
    server = serve(keys=Keys(file), need_key=True)
    for jump, status in ((0.0, 200), (HOUR_S, 401), (-HOUR_S, 200), (TEN_YEARS_S, 401)):
        clock.by = jump
        assert httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {text}"}).status_code == status


JUMPS_AT_WILL = """
import os, time
_now, _place = time.time, os.environ["CLOCK_FILE"]
def jumped():
    try:
        with open(_place) as file:
            return _now() + float(file.read() or 0)
    except (OSError, ValueError):
        return _now()
time.time = jumped
"""


@pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here")
def test_a_server_and_its_engine_go_on_whatever_the_clock_of_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(JUMPS_AT_WILL)
    place = tmp_path / "clock"
    place.write_text("0")
    found = environment(CLOCK_FILE=str(place), HERD_HOME=str(tmp_path / "home"))
    found["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), found.get("PYTHONPATH", "")])
    words = command("serve", STORIES, "--port", "0", "--set", "header_timeout_s=30")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=found, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            page = ""
            while "twice" not in page:
                page += (line := process.stdout.readline())
                assert line, "the server ended"
            address = re.search(r"http://[0-9.:]+", page)
            assert address is not None
            _asked_while_the_clock_jumps(address[0], place)
        finally:
            process.terminate()
            _, problems = process.communicate(timeout=30)
    assert process.returncode == 0 and "WARNING" not in problems and "Traceback" not in problems, problems


def _asked_while_the_clock_jumps(url: str, place: Path) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        (model,) = [each["id"] for each in client.get("/v1/models").json()["data"]]
        ask = {"model": model, "prompt": "Once upon a time", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
        texts = set()
        for jump in (TEN_YEARS_S, -TEN_YEARS_S, 0.0):
            pieces = []
            with client.stream("POST", "/v1/completions", json={**ask, "stream": True}, headers={"x-deadline-s": "30"}) as told:
                for line in told.iter_lines():
                    place.write_text(str(jump))
                    if line.startswith("data: {"):
                        pieces.append(json.loads(line[6:])["choices"][0]["text"])
            texts.add("".join(pieces))
            answer = client.post("/v1/completions", json=ask).json()
            assert abs(answer["created"] - time.time() - jump) < 60 and client.get("/ready").status_code == 200
            late = client.post("/v1/completions", json={**ask, "max_tokens": 400}, headers={"x-deadline-s": "0.001"})
            assert late.status_code == 504
        assert len(texts) == 1
