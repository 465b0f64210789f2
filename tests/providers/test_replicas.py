"""Two replicas of a model under Ray Serve, on this computer: the bits of one alone, each conversation where it began, and one that dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import herd
from herd.errors import CapacityError, EngineLost, FileProblem, ProviderError
from herd.providers.base import ChatRequest, CompletionRequest, Event, Failed, Finished, Text
from herd.providers.process import EngineOptions
from herd.sampling.params import SamplingParams
from herd.text.messages import Message, Role

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'herd-llama[ray]'"),
    pytest.mark.filterwarnings("ignore"),  # of the libraries that Ray brings
]
GREEDY = SamplingParams(temperature=0.0)
CPU = {"backend": "cpu", "threads": 1, "parallel": 8}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray for these tests alone, of two processors, however many there are."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    serve.shutdown()
    ray.shutdown()


def replicated(folder: Path, use: Callable[[Any], Awaitable[None]]) -> None:
    """Runs `use` with two replicas."""
    from herd.providers.replicas import Replicas

    async def run() -> None:
        service = Replicas(EngineOptions(model=str(folder), load=CPU), count=2)
        await service.start()
        ids = [each for handle in service.handles for each in await handle.process_ids.remote()]
        try:
            await asyncio.wait_for(use(service), 120)
            assert service.is_idle
        finally:
            await service.aclose()
        assert len(set(ids)) == 4
        await until(lambda: not any(map(lives, ids)))

    asyncio.run(run())


def lives(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text() if Path("/proc/self").exists() else True


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.02)


async def read(answer: Any) -> list[Event]:
    return [event async for events in answer for event in events]


def tokens(events: list[Event]) -> list[tuple[int, float, Any]]:
    return [(each.token, each.logprob, each.top) for event in events if isinstance(event, Text) for each in event.tokens]


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1]


def conversation(number: int, *more: str) -> ChatRequest:
    roles = (Role.ASSISTANT, Role.USER)
    first = Message(Role.USER, f"{number} " + "Once upon a time there was a herd. " * 4)
    messages = [first, *(Message(roles[index % 2], text) for index, text in enumerate(more))]
    return ChatRequest(messages=messages, sampling=GREEDY, max_tokens=8)


def test_two_replicas_answer_with_the_bits_of_one_and_conversations_stay_where_they_are(
    folder: Path, alone: herd.Model, cluster: None
) -> None:
    requests = [
        CompletionRequest(
            prompt="once " * (index * 7 % 23 + 1),
            sampling=SamplingParams(temperature=float(index % 2), seed=index, logprobs=2),
            max_tokens=5 + index,
        )
        for index in range(16)
    ]

    async def use(service: Any) -> None:
        assert service.is_up and service.facts.name == alone.name
        found = await asyncio.gather(*(read(service.complete(request)) for request in requests))
        for request, events in zip(requests, found, strict=True):
            assert tokens(events) == tokens(list(alone.provider.complete(request)))
        await until(lambda: min(each.gauges.steps for each in service._supervisors) > 0)
        for number in range(4):
            first = await read(service.chat(conversation(number)))
            said = "".join(event.text for event in first if isinstance(event, Text))
            second = conversation(number, said, "And then?")
            events = await read(service.chat(second))
            assert finished(events).usage.cached_tokens > 100
            assert tokens(events) == tokens(list(alone.provider.chat(second)))
        assert await service.decode(await service.encode("herd")) == "herd"
        assert await service.count(conversation(0)) > 100
        answers = [service.complete(CompletionRequest(prompt="x", sampling=GREEDY, max_tokens=None, ignore_end=True)) for _ in range(2)]
        for answer in answers:
            await answer.accepted()
            await answer.aclose()
        await until(lambda: service.gauges.running == service.gauges.waiting == service.gauges.used_pages == 0)
        await until(lambda: service.gauges.cached_tokens > 400 and bool(service.gauges.memory_bytes))

    replicated(folder, use)


@pytest.mark.parametrize("victim", ["actor", "engine"])
def test_a_replica_that_is_killed_fails_what_it_ran_and_comes_back(folder: Path, victim: str, cluster: None) -> None:
    endless = [CompletionRequest(prompt=text, sampling=GREEDY, max_tokens=None, ignore_end=True) for text in "abcdefghijkl"]

    async def use(service: Any) -> None:
        ids = await service.handles[0].process_ids.remote()
        answers = [service.complete(each) for each in endless]
        for answer in answers:
            await answer.__anext__()
        os.kill(ids[0 if victim == "actor" else 1], signal.SIGKILL)
        outcomes = [(await read(answer))[-1] for answer in answers]
        failed = [each for each in outcomes if isinstance(each, Failed)]
        assert len(failed) == len(endless) // 2, "those of the other one go on"
        assert all(isinstance(each.error, EngineLost) and isinstance(each.error, ProviderError) for each in failed)
        assert service.is_up, "the other one is there"
        finished(await read(service.chat(conversation(1))))
        await until(lambda: all(each.is_up for each in service._supervisors))
        assert service.gauges.restarts == 1
        found = await asyncio.gather(*(read(service.chat(conversation(number))) for number in range(4)))
        assert all(map(finished, found))
        await until(lambda: min(each.gauges.steps for each in service._supervisors) > 0)

    replicated(folder, use)


def test_what_cannot_be_loaded_and_more_than_there_is_room_for_are_said_in_a_line(folder: Path, tmp_path: Path, cluster: None) -> None:
    from herd.providers.replicas import Replicas

    async def run(model: Path, count: int) -> None:
        await Replicas(EngineOptions(model=str(model), load=CPU), count=count).start()

    with pytest.raises(CapacityError, match="3 replicas need 3 CPUs; Ray has 2"):
        asyncio.run(run(folder, 3))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileProblem):
        asyncio.run(run(tmp_path / "broken.gguf", 1))
