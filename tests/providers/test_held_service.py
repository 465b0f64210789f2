"""Answers held to a language by an engine in a process of its own: what is hostile is refused, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import pytest

import herd
from cli import chat_model
from conformance.running import cpu_is_built
from herd.providers.base import Text
from herd.providers.supervisor import Supervisor
from herd.sampling.constraint import Constraint, ConstraintKind
from herd.sampling.params import SamplingParams
from providers.test_supervisor import CPU, all_back, completion, read, served, tokens, until

pytestmark = pytest.mark.skipif(not cpu_is_built(), reason="the native module is not built")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model.write(tmp_path_factory.mktemp("model") / "m")


def costly(number: int) -> Constraint:
    """A schema that takes most of the time that one may take."""
    values = [f"{number}{index}" for index in range(80_000)]
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps({"enum": values}))


def test_held_answers_are_the_same_as_in_one_process(folder: Path) -> None:
    requests = [
        completion("hi", 40, sampling=SamplingParams(seed=seed), constraint=Constraint(ConstraintKind.REGEX, "[a-f]{3}-[0-9]+x"))
        for seed in range(6)
    ]

    async def use(service: Supervisor) -> None:
        found = await asyncio.gather(*(read(service.complete(request)) for request in requests))
        with herd.load(folder, **CPU) as alone:
            for request, events in zip(requests, found, strict=True):
                assert tokens(events) == tokens(list(alone.provider.complete(request)))
                assert re.match("[a-f]{3}-", "".join(event.text for event in events if isinstance(event, Text)))
        await all_back(service)

    served(folder, use)


def test_others_do_not_wait_for_hostile_schemas(folder: Path) -> None:
    async def use(service: Supervisor) -> None:
        await read(service.complete(completion("hi", 4, constraint=Constraint(ConstraintKind.REGEX, "ab"))))
        hostile = [asyncio.ensure_future(read(service.complete(completion("hi", 4, constraint=costly(each))))) for each in range(3)]
        await asyncio.sleep(0.1)
        longest = 0.0
        for seed in range(10):
            begin = time.monotonic()
            await read(service.complete(completion("hi", 8, sampling=SamplingParams(seed=seed))))
            longest = max(longest, time.monotonic() - begin)
        assert not all(each.done() for each in hostile), "they take their time"
        for each in hostile:
            each.cancel()  # what they still take would say nothing more
        await asyncio.gather(*hostile, return_exceptions=True)
        assert longest < 2.0
        await until(lambda: service.is_idle)
        await all_back(service)

    served(folder, use)
