"""OpenAI's client for JavaScript, installed by npm: what an application in a browser or in Node sees of this server."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from herd.errors import ProviderError
from herd.providers.base import Called, Calling, Failed, Text
from herd.text.formats.guard import Category, Verdict
from herd.text.messages import ToolCall
from server.fake_pool import FakePool, FakeService, Wait, words

if TYPE_CHECKING:
    from server.conftest import Running

HERE = Path(__file__).resolve().parent
INSTALL = ("install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-update-notifier", "--loglevel", "error")

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program and the client that it imports. Skips, saying so, where npm is missing or reaches no registry."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm and node are not on this machine")
    folder = tmp_path_factory.mktemp("javascript")
    for name in ("package.json", "client.mjs"):
        shutil.copy(HERE / name, folder / name)
    done = subprocess.run([npm, *INSTALL], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm could not install the client: {done.stderr[-500:]}")
    return folder


def pool() -> FakePool:
    calls = [Calling(0, "weather", "call_1", '{"city":'), Calling(0, "weather", "call_1", ' "Osló"}')]
    return FakePool(
        FakeService(),
        FakeService("caller", script=[Text("Let me see."), *calls, Called(ToolCall("call_1", "weather", {"city": "Osló"}))]),
        FakeService("writer", script=[Text('{"name":'), Text(' "Oslo"}')]),
        FakeService("endless", script=[*words("One"), Wait(60)]),
        FakeService("broken", script=[Text("Hel"), Failed(ProviderError("gone"))]),
        FakeService("guard", verdict=Verdict(False, (Category("S1", "Violent Crimes"),), 0.9), facts_given={"is_guard": True}),
    )


def test_the_client_for_javascript_sees_what_pythons_does(serve: Callable[..., Running], installed: Path) -> None:
    server = serve(pool())
    done = subprocess.run(["node", "client.mjs", server.url], cwd=installed, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    text = "Hello there, world."
    assert seen["chat"] == [[0, text, "stop"], [1, text, "stop"]] and seen["usage"] == 13 and seen["seedIsExact"]
    assert seen["stream"] == [text, 3]
    assert seen["calls"] == [["call_1", "weather", {"city": "Osló"}]] and seen["reason"] == "tool_calls"
    assert seen["parsed"] == {"name": "Oslo"}
    assert seen["completions"] == [f"a{text}", f"b{text}"]
    assert seen["embedding"] == [0.6, 0.8]
    assert seen["models"] == ["fake", "caller", "writer", "endless", "broken", "guard"] and seen["model"] == "fake"
    assert seen["flagged"] is True
    assert seen["wrong"] == ["BadRequestError", 400, None, "temperature"]
    assert seen["unknown"] == ["NotFoundError", 404, "model_not_found", "model"]
    assert seen["broken"][0] == "APIError"
    end = time.monotonic() + 5
    while server.pool.used:
        assert time.monotonic() < end, "the stream that was left is still there"
        time.sleep(0.01)
    assert server.pool.services["endless"].cancelled == 1
