"""Bytes on a socket: requests that no client library would send."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any


@dataclass
class Answered:
    """What came back: `status` 0 for nothing at all."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def connection(port: int, timeout_s: float = 60.0) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout_s) as made:
        yield made


def ask(port: int, data: bytes, timeout_s: float = 60.0) -> Answered:
    """Sends bytes as they are and reads until the server is done with the connection, or a response is complete."""
    with connection(port, timeout_s) as made:
        send_all(made, data)
        return read(made)


def send_all(made: socket.socket, data: bytes) -> None:
    """Sends as much as the other side takes; it may have said no in the middle."""
    with suppress(BrokenPipeError, ConnectionResetError):
        made.sendall(data)


def read(made: socket.socket) -> Answered:
    """One response, of whatever was sent; what follows it stays unread."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        if not (piece := receive(made, 1)):
            return Answered(0, {}, data)
        data += piece
    lines = data.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    length, body = int(headers.get("content-length", "0")), b""
    while len(body) < length and (piece := receive(made, length - len(body))):
        body += piece
    return Answered(int(lines[0].split()[1]), headers, body)


def receive(made: socket.socket, num_bytes: int = 65536) -> bytes:
    try:
        return made.recv(num_bytes)
    except ConnectionResetError:
        return b""


def is_closed(made: socket.socket, within_s: float) -> bool:
    """Whether the server ends the connection in this time."""
    end = time.monotonic() + within_s
    made.settimeout(within_s)
    try:
        while time.monotonic() < end:
            if not receive(made):
                return True
    except TimeoutError:
        return False
    return False


def until(check: Any, within_s: float = 5.0) -> bool:
    """Whether something becomes true in this time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.01)
    return bool(check())
