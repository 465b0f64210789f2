"""Is a server, after minutes of everything that clients and machines do wrong, as it was before?

    python benchmarks/soak.py [--model PATH] [--minutes 10] [--clients 12] [--seed 1]

A real `herd serve` in processes of its own. Clients ask what they like, one after another: whole answers, streams, embeddings,
token counts and stored answers of all three APIs. They leave at random moments, send half a request, or read slowly. Each minute the
engine's process is killed (SIGKILL). At the end all is quiet, and memory of the web process, file descriptors, connections, requests
and pages of the cache are compared with what they were after a warm-up that did the same. Prints one JSON line; exit code 1
if something was left over, or an answer was a 5xx other than a 503 that says when to ask again.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from record import commit, machine, say
from serving import free_port, herd_server

from herd.family.finding import find_model

TURNS = [{"role": "user", "content": "Tell me about rivers."}]
REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": TURNS, "max_tokens": 24}),
    ("/v1/chat/completions", {"messages": TURNS, "max_tokens": 24, "stream": True, "n": 2, "logprobs": True, "top_logprobs": 3}),
    ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 48, "stream": True}),
    ("/v1/completions", {"prompt": "word " * 400, "max_tokens": 4}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 16}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 16, "stream": True, "store": False}),
    ("/v1/messages", {"messages": TURNS, "max_tokens": 24, "stream": True}),
    ("/v1/messages/count_tokens", {"messages": TURNS}),
    ("/v1/embeddings", {"input": ["a river", "a lake"]}),
    ("/api/chat", {"messages": TURNS, "options": {"num_predict": 24}}),
    ("/tokenize", {"prompt": "Hi there"}),
    ("/v1/completions", {"prompt": "Hi", "max_tokens": -1}),
)
MANNERS = ("whole", "whole", "whole", "leaves", "leaves", "half", "slow")
WARM_S, QUIET_S, KILL_EVERY_S = 20.0, 60.0, 60.0
GROWTH_MIB = 32


class Counts:
    """What happened, counted by all clients together."""

    def __init__(self) -> None:
        self.by_name: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.lock = threading.Lock()

    def add(self, name: str) -> None:
        with self.lock:
            self.by_name[name] += 1

    def fault(self, text: str) -> None:
        with self.lock:
            self.wrong.append(text)


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps({"model": "m", **body}).encode()
    fields = f"host: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {len(data)}"
    head = f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n"
    return head.encode() + data


def behave(port: int, chance: random.Random, counts: Counts) -> None:
    """One request, in one of the manners that clients have."""
    path, body = chance.choice(REQUESTS)
    manner, data = chance.choice(MANNERS), request_bytes(path, body)
    counts.add(manner)
    with socket.create_connection(("127.0.0.1", port), 120) as made:
        if manner == "slow":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if manner == "half":
            made.sendall(data[: chance.randrange(len(data))])
            time.sleep(chance.random())
            return
        made.sendall(data)
        if manner == "leaves":
            _read(made, time.monotonic() + chance.random() * 2, 0.0)
            return
        judge(path, body, _read(made, time.monotonic() + 180, 0.02 if manner == "slow" else 0.0), counts)


def _read(made: socket.socket, until: float, pause_s: float) -> bytes:
    """What comes until the server is done, or until a moment."""
    data = b""
    while (left_s := until - time.monotonic()) > 0:
        made.settimeout(left_s)
        try:
            piece = made.recv(256 if pause_s else 65536)
        except TimeoutError:
            break
        if not piece:
            break
        data += piece
        time.sleep(pause_s)
    return data


def judge(path: str, body: dict[str, Any], data: bytes, counts: Counts) -> None:
    """Counts the status; a 5xx has to be a 503 with `Retry-After`, and a wrong request a 400."""
    head, _, rest = data.partition(b"\r\n\r\n")
    if not (found := re.match(rb"HTTP/1\.1 (\d{3})", head)):
        counts.fault(f"{path}: no answer: {data[:80]!r}")
        return
    status = int(found[1])
    counts.add(str(status))
    if status == 200 and b"is started again" in rest:
        counts.add("ended by the kill")
    if status not in (200, 400, 429, 503) or (status in (429, 503) and b"retry-after" not in head.lower()):
        counts.fault(f"{path}: {status}: {rest[:200]!r}")
    if (status == 400) != (body.get("max_tokens") == -1) and status != 503:
        counts.fault(f"{path}: {status} for {body}: {rest[:200]!r}")


def load(port: int, clients: int, seconds: float, seed: int, counts: Counts, each: Callable[[], None]) -> None:
    """Clients behave as they like for some seconds; meanwhile `each` is called every KILL_EVERY_S seconds, first after half of it."""
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        while time.monotonic() < until:
            try:
                behave(port, chance, counts)
            except OSError as problem:
                counts.fault(f"connection: {problem!r}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    following = time.monotonic() + KILL_EVERY_S / 2
    while time.monotonic() < until:
        time.sleep(0.2)
        if time.monotonic() >= following:
            each()
            following += KILL_EVERY_S
    for thread in threads:
        thread.join()


def children(process_id: int) -> list[int]:
    """Processes that a process started, the youngest threads' included."""
    lists = Path(f"/proc/{process_id}/task").glob("*/children")
    return [int(each) for path in lists for each in path.read_text().split()]


def state(port: int, process_id: int) -> dict[str, float]:
    """What must not grow, of a server that is quiet. Descriptors are counted first: the connection that asks is not among them then."""
    descriptors = len(os.listdir(f"/proc/{process_id}/fd"))
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()

    def measure(name: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE))

    resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    assert resident is not None
    return {
        "resident_mib": int(resident[1]) / 1024,
        "descriptors": descriptors,
        "threads": len(os.listdir(f"/proc/{process_id}/task")),
        "processes": len(children(process_id)),
        "connections": measure("herd_connections"),
        "requests": measure("herd_requests_active"),
        "tasks": measure("herd_tasks"),
        "waiting": measure("herd_model_waiting"),
        "running": measure("herd_model_running"),
        "pages_used": measure("herd_model_pages_used"),
        "pages_free_or_cached": measure("herd_model_pages_free") + measure("herd_model_pages_cached"),
        "restarts": measure("herd_model_restarts_total"),
    }


def settled(port: int, process_id: int) -> dict[str, float]:
    """The state when nothing runs any more, or after QUIET_S seconds; the request that asks is not counted."""
    until = time.monotonic() + QUIET_S
    while True:
        found = state(port, process_id)
        is_quiet = found["requests"] <= 1 and found["connections"] <= 1 and not found["waiting"] + found["running"] + found["pages_used"]
        if (is_quiet and found["pages_free_or_cached"]) or time.monotonic() > until:
            return found
        time.sleep(0.5)


def kill_engine(process_id: int, counts: Counts) -> None:
    """SIGKILL to the process that computes: of those that the server started, the one with the most memory."""

    def resident(each: int) -> int:
        with suppress(OSError):
            return int(Path(f"/proc/{each}/statm").read_text().split()[1])
        return 0

    if found := children(process_id):
        with suppress(ProcessLookupError):
            os.kill(max(found, key=resident), signal.SIGKILL)
            counts.add("kills")


def compared(before: dict[str, float], after: dict[str, float], counts: Counts) -> None:
    """Faults for what is not as it was. Descriptors and threads may differ by as many as a pool of threads has spare."""
    slack = {"resident_mib": GROWTH_MIB, "descriptors": 2, "threads": 8}
    for name in before.keys() - {"restarts", "pages_free_or_cached"}:
        if after[name] > before[name] + slack.get(name, 0):
            counts.fault(f"{name}: {before[name]} before, {after[name]} after")
    if after["pages_free_or_cached"] != before["pages_free_or_cached"]:
        counts.fault(f"pages: {before['pages_free_or_cached']} before, {after['pages_free_or_cached']} after")
    if after["restarts"] != counts.by_name["kills"]:
        counts.fault(f"{counts.by_name['kills']} kills, and {after['restarts']} restarts")


def soak(model: Path, minutes: float, clients: int, seed: int) -> dict[str, Any]:
    """The whole run; its line."""
    port, counts = free_port(), Counts()
    with tempfile.TemporaryDirectory() as folder, herd_server(model, port, clients, data_folder=folder) as server:
        load(port, clients, WARM_S, seed + 1, Counts(), lambda: None)
        before = settled(port, server.pid)
        say(f"before: {before}")
        load(port, clients, minutes * 60, seed, counts, lambda: kill_engine(server.pid, counts))
        after = settled(port, server.pid)
        say(f"after: {after}")
    compared(before, after, counts)
    asked = {"minutes": minutes, "clients": clients, "seed": seed, "counts": dict(sorted(counts.by_name.items()))}
    return left_over("soak", counts.wrong, before, after, model, asked)


def left_over(
    figure: str, wrong: list[str], before: dict[str, float], after: dict[str, float], model: Path, more: dict[str, Any]
) -> dict[str, Any]:
    """The line of a run after which all should be as it was before."""
    found = {"figure": figure, "value": len(wrong), "unit": "faults", **more, "before": before, "after": after, "faults": wrong[:20]}
    return {**found, "model": model.name, "machine": machine(), "commit": commit()}


def measured(run: Callable[[Path, float, int, int], dict[str, Any]], option: str, default: float, clients: int) -> int:
    """Runs a program of this kind with what the command line says: prints its line, and has its exit code."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the default is smollm2-135m-instruct; with a smaller one requests are over sooner")
    parser.add_argument(f"--{option}", dest="size", type=float, default=default)
    parser.add_argument("--clients", type=int, default=clients)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    model = (asked.model or Path(find_model("smollm2-135m-instruct").path)).resolve()
    line = run(model, asked.size, asked.clients, asked.seed)
    print(json.dumps(line, ensure_ascii=False), flush=True)
    return 1 if line["faults"] else 0


def main() -> int:
    return measured(soak, "minutes", 10.0, 12)


if __name__ == "__main__":
    sys.exit(main())
