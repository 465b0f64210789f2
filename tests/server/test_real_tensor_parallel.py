"""`herd serve --tensor-parallel` as a person uses it: it answers, and one of its processes that is killed is there again soon."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

from cli.running import command, environment, invoke
from server.openai.real import write_model
from server.raw import until

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes as Linux shows them")
ASKED: dict[str, Any] = {"model": "m", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "logprobs": 1}
FOLLOWER = b"herd.backends.torch.ranks.follower"
ENGINE = b"herd.api.serving"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("divided-serving") / "m")


@pytest.fixture
def served(model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server's process and its address."""
    words = command("serve", f"m={model}", "--port", "0", "--backend", "torch", "--threads", "1", "--context", "512", "--parallel", "2")
    process = subprocess.Popen(
        [*words, "--tensor-parallel", "2"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(OMP_NUM_THREADS="1"),
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("herd serves m at http://"), first or process.communicate()[1]
        yield process, first.split()[-1]
    finally:
        process.kill()
        process.communicate()


def below(parent: int, words: bytes) -> list[int]:
    """Processes that this one or those below it started, with these words in their command."""
    found: list[int] = []
    with suppress(OSError):
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            for child in map(int, path.read_text().split()):
                if words in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
                found += below(child, words)
    return found


def all_below(parent: int) -> list[int]:
    """The processes that hold the model."""
    return [*below(parent, FOLLOWER), *below(parent, ENGINE)]


def ask(url: str) -> Any:
    found = httpx.post(f"{url}/v1/completions", json=ASKED, timeout=60)
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]


@pytest.mark.parametrize("killed", [FOLLOWER, pytest.param(ENGINE, marks=pytest.mark.slow)], ids=["follower", "engine"])
def test_a_divided_model_is_served_and_comes_back_when_one_of_its_processes_is_killed(served: Any, killed: bytes) -> None:
    server, url = served
    before = ask(url)
    metrics = httpx.get(f"{url}/metrics").text
    assert 'use="weights"' in metrics and 'use="weights on device 1"' in metrics
    (victim,), first = below(server.pid, killed), all_below(server.pid)
    os.kill(victim, signal.SIGKILL)
    assert until(lambda: not any(Path(f"/proc/{each}/exe").exists() for each in first), 60)
    assert until(lambda: httpx.get(f"{url}/ready").status_code == 200 and len(all_below(server.pid)) == 2, 120)
    after = ask(url)
    assert after["text"] == before["text"]
    assert after["logprobs"]["token_logprobs"] == pytest.approx(before["logprobs"]["token_logprobs"], abs=1e-4)
    left = all_below(server.pid)
    server.send_signal(signal.SIGTERM)
    _, log = server.communicate(timeout=30)
    assert server.returncode == 0 and until(lambda: not any(Path(f"/proc/{each}").exists() for each in left), 10)
    assert ("was ended by SIGKILL" in log) is (killed == FOLLOWER) and "Traceback" not in log, log


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tensor-parallel", "2"), "the cpu backend holds a model in one process"),
        (("--tensor-parallel", "3", "--backend", "torch"), "8 heads do not divide by it"),
        (("--tensor-parallel", "0", "--backend", "torch"), "tensor_parallel is 0"),
    ],
)
def test_what_cannot_be_divided_ends_the_server_with_one_line(model: Path, words: tuple[str, ...], said: str) -> None:
    refused = invoke("run", str(model), "Once", *words)
    assert refused.exit_code == 2 and said in refused.stderr and "Traceback" not in refused.stderr
