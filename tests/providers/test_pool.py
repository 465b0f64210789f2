"""Several models behind one door: loaded once for all that ask, unloaded when another needs the room, never under anybody's hands."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cli import chat_model
from herd.errors import CapacityError, EngineLost, HerdError, UnknownModel, UsageError
from herd.providers.base import CompletionRequest, Finished, Gauges, Service
from herd.providers.pool import CacheNeeds, EnginePool, Hosted
from herd.providers.process import EngineOptions
from herd.providers.supervisor import Supervisor
from herd.sampling.params import SamplingParams

ASKED = CompletionRequest(prompt="hi", sampling=SamplingParams(temperature=0.0), max_tokens=3)
LARGE = 600_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model.write(tmp_path_factory.mktemp("model") / "m")


def hosted(name: str, folder: Path, num_bytes: int = LARGE, cache: CacheNeeds = CacheNeeds(), **options: Any) -> Hosted:  # noqa: B008
    load = {"backend": "cpu", "threads": 1}
    return Hosted(name=name, options=EngineOptions(model=str(folder), load=load, **options), num_bytes=num_bytes, cache=cache)


def pooled(models: list[Hosted], use: Callable[[EnginePool], Awaitable[None]], start: tuple[str, ...] = (), **options: Any) -> None:
    async def run() -> None:
        pool = EnginePool(models, **options)
        try:
            await pool.start(start)
            await asyncio.wait_for(use(pool), 60)
        finally:
            await pool.aclose()

    asyncio.run(run())


async def answered(service: Service) -> bool:
    events = [event async for events in service.complete(ASKED) for event in events]
    return isinstance(events[-1], Finished)


def loaded(pool: EnginePool) -> list[str]:
    return [offer.name for offer in pool.offers() if offer.is_loaded]


def test_a_model_is_loaded_when_it_is_asked_for_and_once_for_all_that_wait(folder: Path) -> None:
    async def use(pool: EnginePool) -> None:
        assert loaded(pool) == [] and pool.is_ready and pool.gauges() == {}
        ids = set()

        async def ask() -> None:
            async with pool.use("a") as service:
                assert await answered(service)
                assert isinstance(service, Supervisor)
                ids.add(service.process_id)

        await asyncio.gather(*(ask() for _ in range(6)))
        assert len(ids) == 1 and loaded(pool) == ["a"] and set(pool.gauges()) == {"a"}
        (offer, other) = pool.offers()
        assert offer.facts is not None and offer.facts.context_length == 512 and other.facts is None

    pooled([hosted("a", folder), hosted("b", folder)], use)


def test_the_model_that_was_not_used_for_longest_goes_when_there_is_no_room(folder: Path) -> None:
    async def use(pool: EnginePool) -> None:
        assert loaded(pool) == ["a", "b"] and pool.is_ready
        async with pool.use("a"):
            pass
        async with pool.use("c") as service:
            assert await answered(service) and loaded(pool) == ["a", "c"]
        assert pool.is_ready, "it is loaded again when it is asked for; until then others have its memory"

    room = _room(folder)
    pooled([hosted(name, folder, room) for name in "abc"], use, ("a", "b"), budget_bytes=2 * room + room // 2)


def test_models_of_the_start_do_not_push_each_other_out(folder: Path) -> None:
    async def use(pool: EnginePool) -> None:
        assert loaded(pool) == ["a", "b"] and pool.is_ready
        async with pool.use("c") as service:
            assert await answered(service) and loaded(pool) == ["b", "c"] and pool.is_ready

    room = _room(folder)
    pooled([hosted(name, folder, room) for name in "abc"], use, ("a", "b", "c"), budget_bytes=2 * room + room // 2)


def test_a_model_in_use_is_never_unloaded(folder: Path) -> None:
    async def use(pool: EnginePool) -> None:
        async with pool.use("a") as service:
            answer = service.complete(ASKED)
            with pytest.raises(CapacityError, match="in use"):
                async with pool.use("b"):
                    pass
            events = [event async for events in answer for event in events]
            assert isinstance(events[-1], Finished) and loaded(pool) == ["a"]
        async with pool.use("b") as service:
            assert await answered(service) and loaded(pool) == ["b"]

    room = _room(folder)
    pooled([hosted("a", folder, room), hosted("b", folder, room)], use, budget_bytes=room + room // 2)


def _room(folder: Path) -> int:
    """More than a loaded model tells to take: its weights and one context."""
    return 2 * sum(path.stat().st_size for path in folder.iterdir()) + (64 << 20)


def test_a_name_that_is_not_offered_is_unknown(folder: Path) -> None:
    async def use(pool: EnginePool) -> None:
        for name in ("llama-2", "", "../../etc/passwd", "a:none", "x\0", "A" * 10_000):
            with pytest.raises(UnknownModel, match="There is no model"):
                async with pool.use(name):
                    pass
        with pytest.raises(UnknownModel, match="did you mean 'llama-1'"):
            async with pool.use("llama-2"):
                pass
        with pytest.raises(UnknownModel, match="no adapter"):
            await pool.remove_adapter("a", "none")
        async with pool.use("alias") as service:
            assert await answered(service)

    named = Hosted(name="a", options=hosted("a", folder).options, aliases=("alias",))
    pooled([named, hosted("llama-1", folder)], use)


def test_a_model_without_a_name_is_the_default_one(folder: Path) -> None:
    async def use(pool: EnginePool) -> None:
        async with pool.use("") as service:
            assert service.facts.name == "m"

    pooled([hosted("a", folder)], use, default="a")


def test_why_a_model_cannot_be_loaded_is_told_to_everybody_who_asks(tmp_path: Path, folder: Path) -> None:
    async def use(pool: EnginePool) -> None:
        found = await asyncio.gather(*(_enter(pool, "bad") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(each, HerdError) and "nothing.gguf" in str(each) for each in found)
        assert await _enter(pool, "good") is None

    bad = Hosted(name="bad", options=EngineOptions(model=str(tmp_path / "nothing.gguf")))
    pooled([bad, hosted("good", folder)], use)
    with pytest.raises(HerdError):
        pooled([bad, hosted("good", folder)], use, ("good", "bad"))


async def _enter(pool: EnginePool, name: str) -> None:
    async with pool.use(name):
        pass


def test_whoever_gives_up_waiting_does_not_end_the_load_for_others(folder: Path) -> None:
    async def use(pool: EnginePool) -> None:
        impatient, patient = asyncio.create_task(_enter(pool, "a")), asyncio.create_task(_enter(pool, "a"))
        await asyncio.sleep(0.05)
        impatient.cancel()
        await patient
        assert loaded(pool) == ["a"]

    pooled([hosted("a", folder)], use)


def test_closing_ends_every_process_and_what_runs_fails(folder: Path) -> None:
    ids: list[int] = []

    async def use(pool: EnginePool) -> None:
        async with pool.use("a") as service:
            assert isinstance(service, Supervisor) and service.process_id is not None
            ids.append(service.process_id)
            answer = service.complete(CompletionRequest(prompt="x", sampling=SamplingParams(), ignore_end=True))
            await anext(answer)
            loading = asyncio.create_task(_enter(pool, "b"))
            await asyncio.sleep(0.02)
            await pool.aclose()
            last = [event async for events in answer for event in events][-1]
            assert isinstance(last.error, EngineLost)  # type: ignore[union-attr]
            with pytest.raises((asyncio.CancelledError, HerdError)):
                await loading
            with pytest.raises(HerdError):
                await _enter(pool, "b")

    pooled([hosted("a", folder), hosted("b", folder)], use)
    for each in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(each, 0)


def test_impossible_pools_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no model to serve"):
        EnginePool([])
    with pytest.raises(UsageError, match="Two models"):
        EnginePool([hosted("a", folder), hosted("a", folder)])


def test_a_budget_holds_the_weights_and_bounds_the_cache(folder: Path) -> None:
    async def wide(pool: EnginePool) -> None:
        async with pool.use("a") as service:
            assert await answered(service)
            while "cache" not in (memory := pool.gauges()["a"].memory_bytes):
                await asyncio.sleep(0.05)
        assert 0 < memory["cache"] <= 300_000

    pooled([hosted("a", folder, 2_000_000)], wide, budget_bytes=2_300_000)


def test_a_model_that_fits_in_no_way_is_refused_before_anything_is_loaded(folder: Path) -> None:
    with pytest.raises(CapacityError, match=r"b takes 2,000 bytes of weights, more than the 1,000 that all models may take"):
        EnginePool([hosted("a", folder, 500), hosted("b", folder, 2000)], budget_bytes=1000)
    with pytest.raises(CapacityError, match=r"b takes 900 bytes of weights and at least 200 for keys and values, more than the 1,000"):
        EnginePool([hosted("a", folder, 500), hosted("b", folder, 900, CacheNeeds(200, 10_000))], budget_bytes=1000)
    EnginePool([hosted("b", folder, 900, CacheNeeds(200, 10_000))])


def test_a_model_whose_cache_has_no_room_now_pushes_nobody_out(folder: Path) -> None:
    async def use(pool: EnginePool) -> None:
        async with pool.use("busy"):
            with pytest.raises(CapacityError, match="large takes at least"):
                await _enter(pool, "large")
            assert loaded(pool) == ["idle", "busy"]
        await _enter(pool, "large")
        assert "large" in loaded(pool)

    room = _room(folder)
    needs = CacheNeeds(room, 4 * room)
    models = [hosted("idle", folder, room), hosted("busy", folder, room), hosted("large", folder, room + room // 2, needs)]
    pooled(models, use, ("idle", "busy"), budget_bytes=3 * room)


def test_caches_of_models_that_are_loaded_together_stay_inside_the_budget() -> None:
    given: dict[str, int] = {}

    class Loaded:
        """A model that takes all that it is given, and tells so."""

        is_up = is_idle = True

        def __init__(self, options: EngineOptions) -> None:
            given[options.model] = options.load["cache_bytes"]
            self.gauges = Gauges(memory_bytes={"weights": 30, "cache": options.load["cache_bytes"]})

        async def start(self) -> None: ...

        async def aclose(self) -> None: ...

    models = [Hosted(name=name, options=EngineOptions(model=name), num_bytes=30, cache=CacheNeeds(1, 1000)) for name in "abc"]

    async def use(pool: EnginePool) -> None:
        for name in "abcabcab":
            await _enter(pool, name)
            held = sum(30 + given[each] for each in loaded(pool))
            assert name in loaded(pool) and held <= 100 and given[name] >= 17

    pooled(models, use, budget_bytes=100, served=Loaded)
