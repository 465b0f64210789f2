"""What a server of real engine processes does when time is over, when an engine dies, and when it is started again."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import herd
from conformance.running import cpu_is_built
from herd.convert import write_adapter
from herd.models.architecture import architecture_of
from herd.models.weights import Kind, Update
from herd.server.keys import create
from server.openai.real import engines_behind, write_model
from server.raw import until
from tiny import dense_f32

pytestmark = pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here")
LONG: dict[str, Any] = {"model": "three", "prompt": "Once", "max_tokens": 4000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and beside it an adapter."""
    base = tmp_path_factory.mktemp("faults")
    with herd.load(write_model(base / "m"), backend="reference") as model:
        config = model.config
    rng = np.random.default_rng(0)
    updates: dict[str, Any] = {}
    for spec in architecture_of(config).tensors(config):
        if spec.kind is Kind.MATRIX:
            rows, columns = spec.shape
            updates[spec.name] = Update(
                dense_f32(rng.standard_normal((4, columns)) / columns**0.5), dense_f32(rng.standard_normal((rows, 4)) * 0.5), 1.0
            )
    write_adapter(base / "poems", config, updates, base_model="m")
    return base


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[openai.OpenAI]:
    chosen = {"adapter_folder": folder, "data_folder": folder / "kept", **settings}
    with (
        engines_behind(folder / "m", {"three": "llama3.1"}, **chosen) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60) as client,
    ):
        yield client


def engines() -> list[int]:
    """Processes that this one started and that serve models."""
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = [int(each) for path in lists for each in path.read_text().split()]
    return [each for each in found if b"herd.api.serving" in Path(f"/proc/{each}/cmdline").read_bytes()]


def test_an_answer_whose_time_is_over_is_a_504_and_in_a_stream_its_last_event(folder: Path) -> None:
    with serving(folder) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(**LONG, extra_headers={"x-deadline-s": "0.05"})
        assert caught.value.status_code == 504 and caught.value.code == "deadline_exceeded"
        assert caught.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(openai.APIError) as told:
            list(client.completions.create(**LONG, stream=True, extra_headers={"x-deadline-s": "0.2"}))
        assert told.value.code == "deadline_exceeded"
        assert client.completions.create(model="three", prompt="Once", max_tokens=2, temperature=0).usage.completion_tokens == 2  # type: ignore[union-attr]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the engine's process as Linux shows it")
def test_an_adapter_survives_its_engine_whose_end_is_in_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked: dict[str, Any] = {"model": "three:poems", "prompt": "Once upon", "max_tokens": 8, "temperature": 0, "logprobs": 1}
    with serving(folder) as client, caplog.at_level(logging.WARNING, "herd.engine"):
        url = str(client.base_url)
        made = httpx.post(f"{url}adapters", json={"model": "three", "name": "poems", "folder": "poems"}, timeout=60)
        assert made.status_code == 201, made.text
        before = client.completions.create(**asked).choices[0]
        plain = client.completions.create(**{**asked, "model": "three"}).choices[0]
        assert before.logprobs != plain.logprobs
        (first,) = engines()
        os.kill(first, signal.SIGKILL)
        assert until(lambda: bool(engines()) and engines() != [first], 30)
        after = client.completions.create(**asked).choices[0]
        assert after.logprobs == before.logprobs and after.text == before.text
    lines = [record.getMessage() for record in caplog.records]
    assert any(f"process {first} " in line and "died" in line and "starts in" in line for line in lines), lines


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the engine's process as Linux shows it")
def test_an_engine_that_is_killed_ends_its_stream_with_an_error_and_is_back(folder: Path) -> None:
    with serving(folder) as client:
        ready = str(client.base_url).replace("/v1/", "/ready")
        stream = client.completions.create(**LONG, stream=True)
        next(iter(stream))
        (first,) = engines()
        os.kill(first, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="stopped while it answered") as told:
            list(stream)
        assert told.value.code == "overloaded"
        assert until(lambda: httpx.get(ready).status_code == 200 and engines() not in ([], [first]), 30)
        assert client.completions.create(model="three", prompt="Once", max_tokens=2, temperature=0).usage.completion_tokens == 2  # type: ignore[union-attr]


def test_one_key_finds_nothing_of_what_anothers_prompt_cost(folder: Path, tmp_path: Path) -> None:
    file, texts = tmp_path / "keys.json", []
    for name in ("alice", "bob"):
        texts.append(create(file, name)[0])
    found = []
    with engines_behind(folder / "m", {"three": "llama3.1"}, keys=file, data_folder=folder / "kept") as url:
        for text in (texts[0], texts[0], texts[1], texts[1]):
            with openai.OpenAI(base_url=f"{url}/v1", api_key=text, max_retries=0, timeout=60) as client:
                answer = client.completions.create(model="three", prompt="A beginning of many. " * 20, max_tokens=2, user="alice")
                assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
                found.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert found[0] == found[2] == 0 and found[1] == found[3] and found[1] is not None and found[1] > 300


def test_what_one_server_computed_the_next_one_reads_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    question: dict[str, Any] = {
        "model": "three",
        "prompt": "An unheard-of beginning. " * 30,
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": 1,
    }
    found = []
    for expected in (0, 704):
        with cached(folder, tmp_path / "cache") as client:
            answer = client.completions.create(**question)
            assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
            assert answer.usage.prompt_tokens_details.cached_tokens == expected
            found.append(answer.choices[0].logprobs)
    assert found[0] == found[1] and len(list((tmp_path / "cache").glob("*.page"))) >= 10


@contextmanager
def cached(folder: Path, cache: Path) -> Iterator[openai.OpenAI]:
    """A server as `herd serve --cache-folder` is one."""
    load = {"cache_folder": str(cache), "cache_disk_bytes": 1 << 28}
    with (
        engines_behind(folder / "m", {"three": "llama3.1"}, load=load, data_folder=folder / "kept") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60) as client,
    ):
        yield client
