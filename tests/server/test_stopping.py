"""How a server ends: running answers finish, nothing new begins, and a second signal is an end at once. In processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.running import environment
from herd.errors import UsageError
from herd.server.running import address, listen, raise_file_limit
from herd.server.settings import Settings
from server.echo import body
from server.raw import connection, is_closed, until

PROGRAM = Path(__file__).with_name("serving_process.py")


class Process:
    """A server in a process; `url` once it is ready."""

    def __init__(self, grace_s: float, *before: str, **settings: Any) -> None:
        words = [*before, sys.executable, str(PROGRAM), "0", str(grace_s)]
        found = environment(SERVER_SETTINGS=json.dumps(settings))
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=found)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split()[0])
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self, within_s: float) -> tuple[int, str, str]:
        """Exit code and what it printed, when it has ended by itself."""
        out, err = self.process.communicate(timeout=within_s)
        return self.process.returncode, out, err

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[[float], Process]]:
    with ExitStack() as held:

        def make(grace_s: float) -> Process:
            made = Process(grace_s)
            held.callback(made.close)
            return made

        yield make


class Asking(threading.Thread):
    """A stream that is read in a thread: what came, and how it ended."""

    def __init__(self, url: str, model: str = "fake", stream: bool = True) -> None:
        super().__init__()
        self.text, self.status, self.problem = "", 0, ""
        self._url, self._body = url, body(stream=stream, model=model)
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self._url}/v1/ask", json=self._body, timeout=30) as answer:
                self.status = answer.status_code
                for piece in answer.iter_text():
                    self.text += piece
        except httpx.HTTPError as problem:
            self.problem = repr(problem)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_running_answers_finish_while_new_ones_are_refused(start: Callable[[float], Process], number: int) -> None:
    server = start(10)
    asking = Asking(server.url)
    assert until(lambda: asking.text)
    server.process.send_signal(number)
    assert until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
    refused = httpx.post(f"{server.url}/v1/ask", json=body())
    assert refused.status_code == 503 and "stopping" in refused.json()["error"]["message"] and "retry-after" in refused.headers
    assert httpx.get(f"{server.url}/health").status_code == 200
    code, out, err = server.end(5)
    asking.join(5)
    assert asking.text.count('"b"') == 5 and asking.text.endswith("data: [DONE]\n\n") and not asking.problem
    assert (code, out, err) == (0, "left\n", "")


def test_a_terminal_that_is_closed_ends_no_server_under_nohup() -> None:
    server = Process(5.0, "nohup")
    try:
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert httpx.get(f"{server.url}/health").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.end(10)[0] == 0
    finally:
        server.close()


def test_what_outlasts_the_grace_is_told_that_it_ends(start: Callable[[float], Process]) -> None:
    server = start(0.3)
    stream, whole = Asking(server.url, "endless"), Asking(server.url, "endless", stream=False)
    assert until(lambda: stream.text)
    time.sleep(0.2)
    began = time.monotonic()
    server.process.terminate()
    code, out, err = server.end(5)
    stream.join(5), whole.join(5)
    assert time.monotonic() - began < 1.5 and (code, out, err) == (0, "left\n", "")
    assert "The server stopped before the answer was complete." in stream.text and not stream.problem
    assert whole.status == 503 and "The server stopped" in whole.text


def test_a_second_signal_ends_at_once(start: Callable[[float], Process]) -> None:
    server = start(60)
    asking = Asking(server.url, "endless")
    assert until(lambda: asking.text)
    server.process.terminate()
    assert until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
    began = time.monotonic()
    server.process.terminate()
    code, out, err = server.end(5)
    asking.join(5)
    assert time.monotonic() - began < 1.5 and (code, out, err) == (0, "left\n", "")


def test_idle_connections_do_not_hold_up_the_end(start: Callable[[float], Process]) -> None:
    server = start(10)
    with connection(server.port) as idle:
        server.process.terminate()
        assert server.end(2)[0] == 0 and is_closed(idle, 1)


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    words = [sys.executable, str(PROGRAM), "0", "10", "the file is damaged"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=30)
    assert done.returncode == 1 and done.stdout == "left\n" and "FileProblem: the file is damaged" in done.stderr


def test_an_address_that_is_taken_is_a_line(server: Any) -> None:
    with pytest.raises(UsageError, match=f"127.0.0.1:{server.port} is in use by another program"):
        listen(Settings(port=server.port))
    with pytest.raises(UsageError, match=r"192\.0\.2\.1:0 is no address of this computer"):
        listen(Settings(host="192.0.2.1", port=0))


def test_the_address_is_one_that_can_be_typed() -> None:
    with listen(Settings(host="0.0.0.0", port=0, need_key=True)) as listener:
        assert address(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_more_connections_than_the_system_has_files_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="--set max_connections="):
        raise_file_limit(Settings(max_connections=2**40))
