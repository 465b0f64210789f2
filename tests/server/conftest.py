"""A real server on a free port of this computer, in a thread, with scripted models behind it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from starlette.routing import Route

from herd.server.app import build
from herd.server.house import House, make_house
from herd.server.keys import Keys
from herd.server.running import Front, listen, new_runner
from herd.server.settings import Settings
from server.fake_pool import FakePool


class Running:
    """A server that answers at `url`, with its pool and house for looking inside."""

    def __init__(self, house: House, front: Front, port: int) -> None:
        self.house = house
        self.front = front
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def pool(self) -> FakePool:
        assert isinstance(self.house.pool, FakePool)
        return self.house.pool


def _run(front: Front, listener: socket.socket) -> None:
    with new_runner() as runner:
        runner.run(front.serve(listener))


@contextmanager
def running(
    pool: FakePool | None = None, routes: Sequence[Route] | None = None, keys: Keys | None = None, **settings: Any
) -> Iterator[Running]:
    """Runs the real front until the block ends; whatever is still open is cut then."""
    chosen = Settings(**{"port": 0, "grace_s": 0.2, **settings})
    house = make_house(pool or FakePool(), chosen, keys)
    listener = listen(chosen)
    front = Front(house, build(house, routes))
    thread = threading.Thread(target=_run, args=(front, listener), name="server")
    thread.start()
    try:
        front.wait_started(60)
        yield Running(house, front, listener.getsockname()[1])
    finally:
        front.stop(at_once=True)
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """`serve(pool, **settings)` starts a server that lives until the test ends."""
    with ExitStack() as held:
        yield lambda *arguments, **settings: held.enter_context(running(*arguments, **settings))


@pytest.fixture
def server(serve: Callable[..., Running]) -> Running:
    """A server with one model, `fake`, that says "Hello there, world."."""
    return serve()
