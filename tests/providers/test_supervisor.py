"""An engine in a process of its own, as a server sees it: the same bits, and what happens when either side goes away."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import herd
from herd.errors import Busy, CapacityError, EngineLost, FileProblem, HerdError, UsageError
from herd.providers.base import Caller, ChatRequest, CompletionRequest, Event, Failed, Finished, Priority, Prompted, Text
from herd.providers.process import EngineOptions
from herd.providers.supervisor import Supervisor
from herd.sampling.params import SamplingParams
from herd.sampling.stop import StopReason
from herd.text.messages import Image, Message, Role

GREEDY = SamplingParams(temperature=0.0)
CPU = {"backend": "cpu", "threads": 1, "parallel": 8}


def served(folder: Path, use: Callable[[Supervisor], Awaitable[None]], **options: Any) -> None:
    """Runs `use` with a process that serves the model, and sees to it that none stays behind."""
    seconds = options.pop("seconds", 60)

    async def run() -> None:
        supervisor = Supervisor(EngineOptions(model=str(folder), **{"load": CPU, **options}))
        await supervisor.start()
        process_id = supervisor.process_id
        assert process_id is not None
        try:
            await asyncio.wait_for(use(supervisor), seconds)
            assert supervisor.is_idle or supervisor.is_up
        finally:
            last = supervisor.process_id
            await supervisor.aclose()
        for each in {process_id, last} - {None}:
            with pytest.raises(ProcessLookupError):
                os.kill(each, 0)

    asyncio.run(run())


def completion(prompt: str | list[int] = "hi", max_tokens: int | None = 8, **choices: Any) -> CompletionRequest:
    return CompletionRequest(prompt=prompt, sampling=choices.pop("sampling", GREEDY), max_tokens=max_tokens, **choices)


async def read(answer: Any) -> list[Event]:
    return [event async for events in answer for event in events]


def tokens(events: list[Event]) -> list[tuple[int, float, Any]]:
    return [(each.token, each.logprob, each.top) for event in events if isinstance(event, Text) for each in event.tokens]


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)


async def all_back(service: Supervisor) -> None:
    """The engine holds nothing for anybody."""
    assert service.is_idle
    await asyncio.sleep(0.4)
    await until(lambda: service.gauges.running == service.gauges.waiting == service.gauges.used_pages == 0)


def test_answers_in_company_have_the_bits_that_each_has_alone(folder: Path, alone: herd.Model) -> None:
    requests = [
        completion("once " * (index * 7 % 23 + 1), 5 + index, sampling=SamplingParams(temperature=float(index % 2), seed=index, logprobs=2))
        for index in range(24)
    ]

    async def use(service: Supervisor) -> None:
        found = await asyncio.gather(*(read(service.complete(request)) for request in requests))
        for request, events in zip(requests, found, strict=True):
            expected = list(alone.provider.complete(request))
            assert tokens(events) == tokens(expected)
            assert "".join(e.text for e in events if isinstance(e, Text)) == "".join(e.text for e in expected if isinstance(e, Text))
            last = events[-1]
            assert isinstance(last, Finished) and isinstance(expected[-1], Finished)
            assert (last.stop_reason, last.seed) == (expected[-1].stop_reason, expected[-1].seed)
        await all_back(service)

    served(folder, use)


def test_everything_that_a_service_does(folder: Path, alone: herd.Model) -> None:
    chat = ChatRequest(messages=[Message(Role.USER, "Hi <|im_end|>")], sampling=GREEDY, max_tokens=4)

    async def use(service: Supervisor) -> None:
        assert service.facts.name == alone.name and service.facts.chat_format and service.facts.num_parameters > 0
        assert service.facts.sampling == {"temperature": 0.6, "top_p": 0.9}
        answer = service.chat(chat)
        accepted = await answer.accepted()
        assert accepted.prompt_tokens == len(alone.provider.prompt(chat)[0]) == await service.count(chat)
        events = await read(answer)
        assert tokens(events) == tokens(list(alone.provider.chat(chat)))
        assert isinstance(events[-1], Finished) and events[-1].seed == accepted.seed
        assert await service.encode("né") == alone.tokenizer.encode("né")
        assert await service.decode(alone.tokenizer.encode("né🙂")) == "né🙂"
        found = await service.embed(["one text", [1, 2, 3], "x" * 300], Caller())
        np.testing.assert_array_equal(np.stack([found[0].values, found[2].values]), alone.embed(["one text", "x" * 300]))
        assert [each.num_tokens for each in found] == [8, 3, 300]
        scored = await read(service.complete(completion("abc", 0, score_prompt=True, sampling=SamplingParams(logprobs=1))))
        assert isinstance(scored[0], Prompted) and len(scored[0].tokens) == 3 and isinstance(scored[-1], Finished)
        assert scored[0].tokens[1:] == _prompted(alone, "abc").tokens[1:]
        for wrong in (service.count(_seeing()), service.decode([9999]), service.embed([], Caller()), service.embed(["x" * 600], Caller())):
            with pytest.raises((UsageError, CapacityError)):
                await wrong
        with pytest.raises(UsageError, match="is no guard"):
            await service.moderate([Message(Role.USER, "x")], Caller())
        with pytest.raises(FileProblem, match="adapter_config"):
            await service.add_adapter("a", "/nowhere")
        await all_back(service)

    served(folder, use)


def _prompted(model: herd.Model, text: str) -> Prompted:
    request = completion(text, 1, score_prompt=True, sampling=SamplingParams(logprobs=1))
    first = next(iter(model.provider.complete(request)))
    assert isinstance(first, Prompted)
    return first


def _seeing() -> ChatRequest:
    return ChatRequest(messages=[Message(Role.USER, (Image(b"x"),))], sampling=GREEDY)


def test_what_is_wrong_with_a_request_is_told_before_it_is_accepted(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        for request, kind in [
            (completion([9999]), UsageError),
            (completion("x" * 600), UsageError),
            (completion("x", stop=[""]), UsageError),
            (completion("x", adapter="none"), UsageError),
            (completion("x", deadline_s=-1.0), UsageError),
        ]:
            answer = service.complete(request)
            with pytest.raises(kind):
                await answer.accepted()
            with pytest.raises(kind):
                await read(answer)
        with pytest.raises(UsageError, match="picture"):
            await service.chat(ChatRequest(messages=[Message(Role.USER, (Image(object()),))], sampling=GREEDY)).accepted()
        await all_back(service)

    served(folder, use)


def test_an_answer_that_is_left_gives_everything_back_wherever_it_is(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        for phase in range(40):
            answer = service.complete(completion("y" * (1 + phase * 5), None, ignore_end=True))
            if phase % 4 > 0:
                await answer.accepted()
            if phase % 4 > 1:
                await anext(answer)
            if phase % 4 == 3:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(read(answer), 0.01)
            if phase % 2:
                await answer.aclose()
            else:
                del answer
                gc.collect()
        await asyncio.sleep(0.05)
        await all_back(service)
        assert len(tokens(await read(service.complete(completion("still here"))))) == 8

    served(folder, use)


def test_a_waiting_task_that_is_cancelled_leaves_the_operation(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        task = asyncio.create_task(service.embed(["x" * 500] * 50, Caller()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await all_back(service)

    served(folder, use)


def test_when_the_process_is_killed_what_ran_fails_and_what_waited_is_answered_by_the_next(folder: Path, alone: herd.Model) -> None:
    async def use(service: Supervisor) -> None:
        first = service.process_id
        assert first is not None
        running = [service.complete(completion("a" * 9, None, ignore_end=True)) for _ in range(3)]
        for answer in running:
            await anext(answer)
        os.kill(first, signal.SIGSTOP)
        waiting = [service.complete(completion(f"request {index}", sampling=SamplingParams(seed=index))) for index in range(5)]
        counted = asyncio.create_task(service.encode("abc"))
        await asyncio.sleep(0)
        os.kill(first, signal.SIGKILL)
        for answer in running:
            last = (await read(answer))[-1]
            assert isinstance(last, Failed) and isinstance(last.error, EngineLost) and last.error.http_status == 503
        for index, answer in enumerate(waiting):
            expected = list(alone.provider.complete(completion(f"request {index}", sampling=SamplingParams(seed=index))))
            assert tokens(await read(answer)) == tokens(expected)
        assert await counted == alone.tokenizer.encode("abc")
        assert service.process_id != first and service.gauges.restarts == 1

    served(folder, use)


def test_a_request_that_was_accepted_keeps_its_seed_through_a_crash(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        # One step at a time holds 32 sequences, so the ones after them were accepted and wait.
        running = [service.complete(completion("a", None, ignore_end=True)) for _ in range(32)]
        for answer in running:
            await anext(answer)
        waiting = service.complete(completion("b", 5, sampling=SamplingParams()))
        accepted = await waiting.accepted()
        assert service.process_id is not None
        os.kill(service.process_id, signal.SIGKILL)
        last = (await read(waiting))[-1]
        assert isinstance(last, Finished) and last.seed == accepted.seed

    served(folder, use, load={**CPU, "parallel": 64})


def test_a_process_that_hangs_is_killed_and_replaced(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        first = service.process_id
        assert first is not None
        answer = service.complete(completion("a", None, ignore_end=True))
        await anext(answer)
        os.kill(first, signal.SIGSTOP)
        began = time.monotonic()
        last = (await read(answer))[-1]
        assert isinstance(last, Failed) and isinstance(last.error, EngineLost) and time.monotonic() - began < 5
        assert len(tokens(await read(service.complete(completion())))) == 8

    served(folder, use, silence_s=1.0)


def test_a_process_that_dies_again_and_again_is_started_less_and_less_often(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        for deaths in range(1, 4):
            await until(lambda: service.is_up)
            assert service.process_id is not None
            os.kill(service.process_id, signal.SIGKILL)
            await until(lambda: not service.is_up)
            assert service.gauges.restarts == deaths
        with pytest.raises(EngineLost, match="3 times in a row"):
            await service.complete(completion()).accepted()
        with pytest.raises(EngineLost):
            await service.encode("x")
        await until(lambda: service.is_up)
        assert len(tokens(await read(service.complete(completion())))) == 8

    served(folder, use, pauses_s=(0.0, 0.0, 1.0))


def test_a_request_that_kills_its_process_each_time_is_given_up(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        poison = None
        for _ in range(3):
            await until(lambda: service.is_up)
            assert service.process_id is not None
            os.kill(service.process_id, signal.SIGSTOP)
            poison = poison or service.complete(completion("a", 400, ignore_end=True))
            os.kill(service.process_id, signal.SIGKILL)
            await until(lambda: not service.is_up)
        assert poison is not None
        try:
            await poison.accepted()  # a quick process may have begun with it before it was stopped
            last = (await read(poison))[-1]
            assert isinstance(last, Failed)
            raise last.error
        except EngineLost as error:
            assert "again" in str(error) or "died" in str(error)

    served(folder, use, pauses_s=(0.0,))


def test_what_lies_in_the_folder_where_one_stands_is_not_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("queue", "socket", "msgpack", "herd"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)

    async def use(service: Supervisor) -> None:
        assert len(tokens(await read(service.complete(completion())))) == 8

    served(folder, use)


def test_time_that_is_over_ends_an_answer_with_an_error(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        began = time.monotonic()
        events = await read(service.complete(completion("a", None, deadline_s=0.05, ignore_end=True)))
        last = events[-1]
        if isinstance(last, Failed):  # a fast machine may be done before
            assert isinstance(last.error, CapacityError) and "time" in str(last.error) and time.monotonic() - began < 5
        events = await read(service.complete(completion("a", None, deadline_s=0.0, ignore_end=True)))
        assert isinstance(events[-1], Failed) and isinstance(events[-1].error, CapacityError)
        await all_back(service)

    served(folder, use)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        assert service.process_id is not None
        os.kill(service.process_id, signal.SIGSTOP)
        answers = [service.complete(completion("a")) for _ in range(4)]
        began = time.monotonic()
        with pytest.raises(Busy) as refused:
            await service.complete(completion("a")).accepted()
        assert time.monotonic() - began < 0.05 and 1.0 <= refused.value.retry_after_s <= 120.0
        low = service.complete(completion("a", caller=Caller("batch", priority=Priority.LOW)))
        os.kill(service.process_id, signal.SIGCONT)
        for answer in (*answers, low):
            assert isinstance((await read(answer))[-1], Finished)

    served(folder, use, max_waiting=4)


def test_the_process_dies_with_whoever_started_it_and_outlives_an_interrupt(folder: Path) -> None:
    program = f"""
import asyncio
from herd.providers.process import EngineOptions
from herd.providers.supervisor import Supervisor

async def main():
    supervisor = Supervisor(EngineOptions(model={str(folder)!r}, load={CPU!r}))
    await supervisor.start()
    print(supervisor.process_id, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        engine = int(parent.stdout.readline())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(engine, number)
        time.sleep(0.2)
        os.kill(engine, 0)
        parent.kill()
    end = time.monotonic() + 10
    while _lives(engine):
        assert time.monotonic() < end, "the engine's process stayed behind"
        time.sleep(0.02)


def _lives(process_id: int) -> bool:
    """Whether a process runs; one that waits to be buried does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return False


def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    async def start(model: str, **load: Any) -> None:
        await Supervisor(EngineOptions(model=model, load=load)).start()

    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    with pytest.raises(FileProblem):
        asyncio.run(start(str(tmp_path / "broken.gguf")))
    with pytest.raises(HerdError):
        asyncio.run(start(str(tmp_path / "nothing.gguf")))
    with pytest.raises(UsageError, match="backend"):
        asyncio.run(start(str(tmp_path / "broken.gguf"), backend="abacus"))


@pytest.mark.slow
def test_a_thousand_open_streams_all_complete_with_the_bits_of_their_solo_runs(folder: Path, alone: herd.Model) -> None:
    def request(index: int) -> CompletionRequest:
        sampling = SamplingParams(temperature=float(index % 2), seed=index, logprobs=1)
        return completion(f"stream {index} " * (index % 5 + 1), 4 + index % 13, sampling=sampling, caller=Caller(f"key {index % 7}"))

    async def use(service: Supervisor) -> None:
        found = await asyncio.gather(*(read(service.complete(request(index))) for index in range(1000)))
        for index, events in enumerate(found):
            assert isinstance(events[-1], Finished)
            assert tokens(events) == tokens(list(alone.provider.complete(request(index))))
        await all_back(service)

    served(folder, use)


@pytest.mark.slow
def test_cancellations_at_random_phases_leave_nothing_behind(folder: Path) -> None:
    """Ten thousand here; the engine's own test has the phases one by one."""

    async def use(service: Supervisor) -> None:
        rng = random.Random(1)

        async def one() -> None:
            answer = service.complete(completion("x" * rng.randrange(1, 200), rng.randrange(1, 20), ignore_end=True))
            phase = rng.randrange(5)
            if phase > 0:
                await asyncio.sleep(rng.random() * 0.003)
            if phase > 1:
                await answer.accepted()
            if phase > 2:
                await anext(answer)
            if phase == 4:
                await read(answer)
            await answer.aclose()

        async def storm(count: int) -> None:
            for _ in range(count):
                await one()

        async def held() -> tuple[int, int, int, int]:
            gc.collect()
            await all_back(service)
            gauges = service.gauges
            descriptors = [len(os.listdir(f"/proc/{each}/fd")) for each in (service.process_id, os.getpid())]
            return (gauges.free_pages + gauges.cached_pages, *descriptors, len(asyncio.all_tasks()))

        await asyncio.gather(*(storm(20) for _ in range(16)))
        before = await held()
        await asyncio.gather(*(storm(600) for _ in range(16)))
        assert await held() == before

    served(folder, use, seconds=300)


def test_stop_reasons_and_usage_arrive(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        events = await read(service.complete(completion("hello", 3, ignore_end=True)))
        last = events[-1]
        assert isinstance(last, Finished) and last.stop_reason is StopReason.LENGTH
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 3) and last.usage.prompt_s >= 0.0
        none = await read(service.complete(completion("hello", 0)))
        assert [type(event) for event in none] == [Finished]

    served(folder, use)
