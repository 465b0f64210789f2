"""LoRA adapters that are chosen for each answer: in this process, and in one that serves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import herd
from cli import chat_model
from conformance.running import cpu_is_built
from herd.convert import write_adapter
from herd.errors import FileProblem, UnknownModel, UsageError
from herd.models.architecture import architecture_of
from herd.models.weights import Kind, Update
from herd.providers.base import CompletionRequest, Event, Text
from herd.providers.pool import EnginePool, Hosted
from herd.providers.process import EngineOptions
from herd.sampling.params import SamplingParams
from tiny import dense_f32

pytestmark = pytest.mark.skipif(not cpu_is_built(), reason="the native core is not built here")
PROMPT = "Once upon a time, in a place far from here"
NAMES = ("poet", "lawyer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and beside it an adapter in a folder of each name."""
    base = tmp_path_factory.mktemp("adapters")
    chat_model.write(base / "m")
    with herd.load(base / "m", backend="reference") as model:
        config = model.config
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng(number)
        updates: dict[str, Any] = {}
        for spec in architecture_of(config).tensors(config):
            if spec.kind is Kind.MATRIX:
                rows, columns = spec.shape
                down, up = rng.standard_normal((4 + number, columns)) / columns**0.5, rng.standard_normal((rows, 4 + number)) * 0.5
                updates[spec.name] = Update(dense_f32(down), dense_f32(up), 1.0)
        write_adapter(base / name, config, updates, base_model="m")
    return base


@pytest.fixture
def model(folder: Path) -> Iterator[herd.Model]:
    with herd.load(folder / "m", backend="cpu", threads=2) as loaded:
        yield loaded


def test_an_answer_comes_from_the_adapter_that_is_named(folder: Path, model: herd.Model) -> None:
    plain = model.generate(PROMPT, max_tokens=12, temperature=0.0)
    for name in NAMES:
        model.add_adapter(name, folder / name)
    assert model.adapters == NAMES
    for name in NAMES:
        with herd.load(folder / "m", adapter=folder / name, backend="cpu", threads=1) as alone:
            expected = alone.generate(PROMPT, max_tokens=12, temperature=0.0)
        found = model.generate(PROMPT, max_tokens=12, temperature=0.0, adapter=name)
        assert found.token_ids == expected.token_ids and found.logprobs == expected.logprobs
        assert found.logprobs != plain.logprobs
    assert model.generate(PROMPT, max_tokens=12, temperature=0.0).logprobs == plain.logprobs
    model.remove_adapter("poet")
    with pytest.raises(UsageError, match="no adapter 'poet' here; there are lawyer"):
        model.generate(PROMPT, adapter="poet")


def test_a_chat_names_its_adapter_too(folder: Path, model: herd.Model) -> None:
    def said(adapter: str | None) -> str:
        events = model.chat([{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0.0, adapter=adapter)
        return "".join(event.text for event in events if isinstance(event, Text))

    model.add_adapter("poet", folder / "poet")
    assert said("poet") != said(None)
    with pytest.raises(UsageError, match="no adapter 'Poet'"):
        said("Poet")


def test_what_cannot_be_an_adapter_is_refused_by_name(folder: Path, model: herd.Model, tmp_path: Path) -> None:
    for name in ("", "a/b", "a:b", "-a", "a" * 101):
        with pytest.raises(UsageError, match="cannot be named"):
            model.add_adapter(name, folder / "poet")
    with pytest.raises(FileProblem):
        model.add_adapter("x", tmp_path)
    model.add_adapter("x", folder / "poet")
    with pytest.raises(UsageError, match="named 'x' already"):
        model.add_adapter("x", folder / "lawyer")
    with pytest.raises(UsageError, match="no adapter 'y'"):
        model.remove_adapter("y")


def test_a_served_model_answers_with_several_adapters_at_once_and_takes_more_while_it_runs(folder: Path) -> None:
    expected = {}
    for name in (None, *NAMES):
        with herd.load(folder / "m", adapter=None if name is None else folder / name, backend="cpu", threads=1) as alone:
            output = alone.generate(PROMPT, max_tokens=16, temperature=0.0)
            expected[name] = list(zip(output.token_ids, output.logprobs, strict=True))

    async def ask(pool: EnginePool, model: str) -> list[tuple[int, float]]:
        async with pool.use(model) as service:
            answer = service.complete(CompletionRequest(prompt=PROMPT, sampling=SamplingParams(temperature=0.0), max_tokens=16))
            events: list[Event] = [event async for some in answer for event in some]
        return [(each.token, each.logprob) for event in events if isinstance(event, Text) for each in event.tokens]

    async def run() -> None:
        options = EngineOptions(model=str(folder / "m"), load={"backend": "cpu", "threads": 1}, adapters={"poet": str(folder / "poet")})
        pool = EnginePool([Hosted(name="m", options=options)])
        try:
            assert [offer.name for offer in pool.offers()] == ["m", "m:poet"]
            with pytest.raises(UnknownModel):
                await ask(pool, "m:lawyer")
            async with pool.use("m"):
                await pool.add_adapter("m", "lawyer", str(folder / "lawyer"))
            found = await asyncio.gather(*(ask(pool, model) for model in ("m", "m:poet", "m:lawyer", "m:poet")))
            assert list(found) == [expected[name] for name in (None, "poet", "lawyer", "poet")]
            await pool.remove_adapter("m", "poet")
            with pytest.raises(UnknownModel):
                await ask(pool, "m:poet")
            assert await ask(pool, "m:lawyer") == expected["lawyer"]
        finally:
            await pool.aclose()

    asyncio.run(asyncio.wait_for(run(), 120))
