"""OpenAI's own client, connected to a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import openai
import pytest

from server.conftest import running

if TYPE_CHECKING:
    from server.conftest import Running

Connect = Callable[["Running"], openai.OpenAI]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """`connect(server)` gives a client that does not try again and is closed when the test ends."""
    with ExitStack() as held:
        yield lambda server: held.enter_context(openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0))


@pytest.fixture(scope="module")
def lasting() -> Iterator[openai.OpenAI]:
    """A client of a server that lives as long as the module, for what leaves no trace there."""
    with running() as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture
def client(server: Running, connect: Connect) -> openai.OpenAI:
    """A client of `server`."""
    return connect(server)
