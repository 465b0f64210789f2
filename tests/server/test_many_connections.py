"""Connections that say little or nothing, by the hundred and by the ten thousand: cheap, bounded, ended in time, and in nobody's way."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from server.raw import connection, is_closed, until
from server.test_stopping import Process

GET = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n"
MANY = 10_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory as Linux tells it")
def test_hundreds_of_half_sent_heads_cost_little_and_hold_up_nobody() -> None:
    server = Process(0.2)
    try:
        for _ in range(50):
            httpx.get(f"{server.url}/health")
        before = resident_bytes(server.process.pid)
        with ExitStack() as held:
            for _ in range(600):
                made = held.enter_context(connection(server.port))
                made.sendall(GET)
            began = time.monotonic()
            for _ in range(20):
                assert httpx.get(f"{server.url}/health").status_code == 200
            assert time.monotonic() - began < 5
            assert (resident_bytes(server.process.pid) - before) / 600 < 50_000
    finally:
        server.close()


def resident_bytes(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory as Linux tells it")
def test_ten_thousand_idle_connections_cost_little_hold_up_nobody_and_end_in_time() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MANY + 500:
        pytest.skip(f"this system allows {hard} open files; {MANY} connections need {MANY + 500}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MANY + 500), hard))  # the server's process has the same
    server = Process(0.2, header_timeout_s=45.0, keep_alive_s=45.0, max_connections=MANY + 100)
    try:
        with httpx.Client(base_url=server.url, timeout=10) as client, ExitStack() as held:
            for _ in range(50):
                assert client.get("/health").status_code == 200
            before = resident_bytes(server.process.pid)
            made = [_idle(held, server.port, number) for number in range(MANY)]
            assert until(lambda: _connections(client) >= MANY, 10)
            took = []
            for _ in range(50):
                began = time.monotonic()
                assert client.get("/health").status_code == 200
                took.append(time.monotonic() - began)
            assert sorted(took)[25] < 0.1 and (resident_bytes(server.process.pid) - before) / MANY < 50_000
            assert until(lambda: _connections(client) <= 1, 150)
            assert all(is_closed(each, 1) for each in made[::100])
            assert client.get("/health").status_code == 200
    finally:
        server.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _idle(held: ExitStack, port: int, number: int) -> socket.socket:
    """One that says nothing, one that says half of what it wants, one that was answered and stays."""
    made = held.enter_context(connection(port))
    if number % 3:
        made.sendall(GET if number % 3 == 1 else GET + b"\r\n")
    return made


def _connections(client: httpx.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return int(float(next(line.split()[-1] for line in lines if line.startswith("herd_connections "))))
