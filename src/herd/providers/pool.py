"""Several models behind one door: loaded when somebody asks for them, unloaded when another needs their room.

    async with pool.use("llama-3.2-1b-instruct") as service: ...

Each loaded model is a process with a supervisor. When the next one does not fit into the memory budget, the one that was not used for
longest goes first; one that is in use never goes. Many that ask for the same model at once wait for the same load. A model that would
not fit alone is refused before anything is loaded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import field, replace
from typing import TYPE_CHECKING, Protocol, final

from herd.errors import CapacityError, UnknownModel, UsageError, did_you_mean
from herd.providers.base import Answer, Caller, ChatRequest, CompletionRequest, Embedding, Gauges, ModelFacts, Offer, Service, Terms
from herd.providers.process import EngineOptions
from herd.providers.supervisor import Supervisor
from herd.records import dataclass

if TYPE_CHECKING:
    from herd.text.formats.guard import Verdict
    from herd.text.messages import Message

SEPARATOR = ":"


@dataclass(frozen=True, slots=True)
class CacheNeeds:
    """Bytes of a model's keys and values: with fewer than `least` it cannot be loaded, more than `most` it has no use for."""

    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """A model that a pool may load.

    name         under which it is asked for
    options      how its process is run
    num_bytes    what its weights are expected to take; 0 if that is not known
    cache        what its keys and values take beside
    aliases      further names that mean it
    terms        its licence, if that is known
    """

    name: str
    options: EngineOptions
    num_bytes: int = 0
    cache: CacheNeeds = CacheNeeds()
    aliases: tuple[str, ...] = ()
    terms: Terms | None = None


class ServedModel(Service, Protocol):
    """A service that a pool starts and closes: a supervisor, or several behind one face."""

    async def start(self) -> ModelFacts: ...

    async def aclose(self) -> None: ...

    @property
    def is_up(self) -> bool: ...

    @property
    def is_idle(self) -> bool: ...

    async def add_adapter(self, name: str, path: str) -> None: ...

    async def remove_adapter(self, name: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Room:
    """A model's place in the pool. `loading` is shared by all that wait; `cache_bytes`: what its keys and values were given;
    `is_put_away`: it is not loaded because somebody said so, or others need the memory."""

    hosted: Hosted
    created: int
    adapters: dict[str, str] = field(default_factory=dict)
    supervisor: ServedModel | None = None
    loading: asyncio.Task[ServedModel] | None = None
    facts: ModelFacts | None = None
    users: int = 0
    used_at: float = 0.0
    cache_bytes: int = 0
    is_put_away: bool = False


@final
class EnginePool:
    """A `Pool`. All of it is used in the thread of one event loop. `start` it, and close it at the end."""

    def __init__(
        self,
        models: Sequence[Hosted],
        *,
        budget_bytes: int | None = None,
        default: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        served: Callable[[EngineOptions], ServedModel] = Supervisor,
    ) -> None:
        """budget_bytes: what all loaded models may take together; None: they are never unloaded. default: the model that is meant when
        none is named. served: makes what answers for a model. `CapacityError` for a model that the budget does not hold alone."""
        if not models:
            raise UsageError("There is no model to serve; name at least one.")
        self._rooms: dict[str, _Room] = {}
        created = int(time.time())
        for hosted in models:
            if hosted.name in self._rooms:
                raise UsageError(f"Two models are called {hosted.name!r}; names must differ.")
            _check_alone(hosted, budget_bytes)
            self._rooms[hosted.name] = _Room(hosted, created, dict(hosted.options.adapters))
        self._aliases = {alias: hosted.name for hosted in models for alias in hosted.aliases}
        self._budget_bytes = budget_bytes
        self._default = default
        self._served = served
        self._clock = clock
        self._wanted: tuple[str, ...] = ()
        self._making_room = asyncio.Lock()
        self._is_closed = False

    async def start(self, names: Sequence[str] = ()) -> None:
        """Loads these models now, one after the other: the first, and of the others those that need no other's memory. Raises why one
        cannot be loaded, and unloads the others."""
        self._wanted = tuple(names)
        try:
            for name in names:
                room, _ = self._find(name)
                if name != names[0] and self._free_bytes() < self._wanted_bytes(room):
                    room.is_put_away = True
                    continue
                async with self.use(name):
                    await self._told(room)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Unloads everything. What is running fails. Idempotent."""
        self._is_closed = True
        for room in self._rooms.values():
            if room.loading is not None:
                room.loading.cancel()
                await asyncio.gather(room.loading, return_exceptions=True)
            if room.supervisor is not None:
                await _taken(room).aclose()

    # Pool

    def offers(self) -> Sequence[Offer]:
        found = []
        for name, room in self._rooms.items():
            is_loaded = room.supervisor is not None
            made = Offer(name=name, created=room.created, is_loaded=is_loaded, facts=room.facts, terms=room.hosted.terms)
            found.append(made)
            for adapter in room.adapters:
                full = f"{name}{SEPARATOR}{adapter}"
                found.append(replace(made, name=full, parent=name))
        return found

    def use(self, model: str) -> AbstractAsyncContextManager[Service]:
        return self._use(model)

    async def put_away(self, model: str) -> bool:
        room, _ = self._find(model)
        if room.supervisor is not None:
            if not _is_idle(room):
                return False
            room.is_put_away = True
            await _taken(room).aclose()
        return room.loading is None

    async def add_adapter(self, model: str, name: str, path: str) -> None:
        """`UsageError` for a name that is taken and for what is no adapter of this model."""
        room, _ = self._find(model)
        if name in room.adapters:
            raise UsageError(f"{model} has an adapter {name!r} already.", param="name")
        async with self._use(room.hosted.name):
            assert room.supervisor is not None
            await room.supervisor.add_adapter(name, path)
        room.adapters[name] = path

    async def remove_adapter(self, model: str, name: str) -> None:
        room, _ = self._find(model)
        if name not in room.adapters:
            raise UnknownModel(f"{model} has no adapter {name!r:.80}{did_you_mean(name, room.adapters)}", param="name")
        if room.supervisor is not None:
            await room.supervisor.remove_adapter(name)
        del room.adapters[name]

    def gauges(self) -> Mapping[str, Gauges]:
        return {name: room.supervisor.gauges for name, room in self._rooms.items() if room.supervisor is not None}

    @property
    def is_ready(self) -> bool:
        """Whether the models that were to be loaded at the start can answer."""
        rooms = [self._rooms[self._aliases.get(name, name)] for name in self._wanted]
        return not self._is_closed and all(room.is_put_away if room.supervisor is None else room.supervisor.is_up for room in rooms)

    # loading and unloading

    @asynccontextmanager
    async def _use(self, model: str) -> AsyncIterator[Service]:
        room, adapter = self._find(model)
        room.users += 1
        try:
            supervisor = await self._loaded(room)
            yield supervisor if adapter is None else _WithAdapter(supervisor, adapter)
        finally:
            room.users -= 1
            room.used_at = self._clock()

    def _find(self, model: str) -> tuple[_Room, str | None]:
        """The room of a model, and which of its adapters is meant. A name may hold colons itself."""
        room = self._rooms.get(self._aliases.get(model, model))
        if room is not None:
            return room, None
        base, _, adapter = model.rpartition(SEPARATOR)
        room = self._rooms.get(self._aliases.get(base, base))
        if room is not None and adapter in room.adapters:
            return room, adapter
        if not model and self._default is not None:
            return self._rooms[self._default], None
        known = [offer.name for offer in self.offers()]
        raise UnknownModel(f"There is no model {model!r:.100} here{did_you_mean(model, known)}", param="model")

    async def _loaded(self, room: _Room) -> ServedModel:
        if self._is_closed:
            raise CapacityError("The server is being stopped, and loads no model any more.")
        if room.supervisor is not None:
            return room.supervisor
        if room.loading is None:
            room.loading = asyncio.get_running_loop().create_task(self._load(room))
            room.loading.add_done_callback(_seen)
        # One that gives up waiting does not end the load for the others.
        return await asyncio.shield(room.loading)

    async def _load(self, room: _Room) -> ServedModel:
        try:
            async with self._making_room:
                await self._make_room(room)
                supervisor = self._served(self._options(room))
                room.facts = await supervisor.start()
                room.supervisor, room.used_at, room.is_put_away = supervisor, self._clock(), False
                return supervisor
        finally:
            room.loading = None

    def _options(self, room: _Room) -> EngineOptions:
        """How a model is loaded now."""
        options = replace(room.hosted.options, adapters=dict(room.adapters))
        if self._budget_bytes is None:
            return options
        room.cache_bytes = max(room.hosted.cache.least, min(self._share(room), int(self._free_bytes()) - room.hosted.num_bytes))
        return replace(options, load={**options.load, "cache_bytes": max(1, room.cache_bytes)})

    def _share(self, room: _Room) -> int:
        """What a model's keys and values should have of the budget: evenly what the weights of all models leave of it, or half of what its
        own leave, where the budget holds no two."""
        assert self._budget_bytes is not None
        left = (self._budget_bytes - sum(each.hosted.num_bytes for each in self._rooms.values())) // len(self._rooms)
        alone = self._budget_bytes - room.hosted.num_bytes
        needs = room.hosted.cache
        wanted = left if left > alone // 4 else alone // 2
        return max(needs.least, wanted if needs.most is None else min(wanted, needs.most))

    def _wanted_bytes(self, room: _Room) -> int:
        """For so much others that are idle are unloaded: the weights, and half of the cache that the model should have."""
        return 0 if self._budget_bytes is None else room.hosted.num_bytes + max(room.hosted.cache.least, self._share(room) // 2)

    async def _told(self, room: _Room) -> None:
        """Waits a moment for the first word about a loaded model's memory, where there is a budget."""
        for _ in range(20):
            if self._budget_bytes is None or room.supervisor is None or room.supervisor.gauges.memory_bytes:
                return
            await asyncio.sleep(0.05)

    def _free_bytes(self) -> float:
        """What is left of the budget beside the loaded models."""
        loaded = [room for room in self._rooms.values() if room.supervisor is not None]
        return float("inf") if self._budget_bytes is None else self._budget_bytes - sum(map(_num_bytes, loaded))

    async def _make_room(self, wanted: _Room) -> None:
        """Unloads what was not used for longest, as much as it takes. `CapacityError`, with nothing unloaded, if that is not enough."""
        free, leaving = self._free_bytes(), list[_Room]()
        loaded = [room for room in self._rooms.values() if room.supervisor is not None]
        for room in sorted((room for room in loaded if _is_idle(room)), key=lambda room: room.used_at):
            if free >= self._wanted_bytes(wanted):
                break
            leaving.append(room)
            free += _num_bytes(room)
        if free < (least := wanted.hosted.num_bytes + wanted.hosted.cache.least):
            raise CapacityError(
                f"{wanted.hosted.name} takes at least {least:,} bytes; {max(free, 0):,} of {self._budget_bytes:,} would be free beside "
                "the models that are in use. Ask again when they are idle."
            )
        # From here on nobody finds them; one that is asked for meanwhile is loaded anew, after this.
        for room in leaving:
            room.is_put_away = True
        for supervisor in [_taken(room) for room in leaving]:
            await supervisor.aclose()


def _check_alone(hosted: Hosted, budget_bytes: int | None) -> None:
    """`CapacityError` for a model that could not be loaded if all others were unloaded."""
    if budget_bytes is not None and hosted.num_bytes + hosted.cache.least > budget_bytes:
        cache = f" and at least {hosted.cache.least:,} for keys and values" if hosted.cache.least else ""
        raise CapacityError(
            f"{hosted.name} takes {hosted.num_bytes:,} bytes of weights{cache}, more than the {budget_bytes:,} that all models may take "
            "together. Allow more memory (--memory), or serve a smaller model or format."
        )


def _taken(room: _Room) -> ServedModel:
    """The supervisor of a loaded model, out of its room."""
    supervisor, room.supervisor = room.supervisor, None
    assert supervisor is not None
    return supervisor


def _seen(task: asyncio.Task[ServedModel]) -> None:
    """A load that fails when nobody waits any more is no news."""
    if not task.cancelled():
        task.exception()


def _is_idle(room: _Room) -> bool:
    return room.users == 0 and room.supervisor is not None and room.supervisor.is_idle


def _num_bytes(room: _Room) -> int:
    """What a loaded model takes, as far as it tells; the weights are mapped files, which count too."""
    told = sum(room.supervisor.gauges.memory_bytes.values()) if room.supervisor is not None else 0
    return max(told or room.hosted.num_bytes + room.cache_bytes, room.hosted.num_bytes)


@final
class _WithAdapter:
    """A service whose answers come from one of its adapters."""

    def __init__(self, service: ServedModel, adapter: str) -> None:
        self._service = service
        self._adapter = adapter

    @property
    def facts(self) -> ModelFacts:
        return self._service.facts

    @property
    def gauges(self) -> Gauges:
        return self._service.gauges

    def chat(self, request: ChatRequest) -> Answer:
        return self._service.chat(replace(request, adapter=self._adapter))

    def complete(self, request: CompletionRequest) -> Answer:
        return self._service.complete(replace(request, adapter=self._adapter))

    async def count(self, request: ChatRequest) -> int:
        return await self._service.count(request)

    async def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]:
        return await self._service.encode(text, bos=bos, specials=specials)

    async def decode(self, ids: Sequence[int]) -> str:
        return await self._service.decode(ids)

    async def embed(self, inputs: Sequence[str | Sequence[int]], caller: Caller) -> list[Embedding]:
        raise UsageError("Embeddings are made by the model itself; ask for it without the adapter.", param="model")

    async def moderate(self, messages: Sequence[Message], caller: Caller) -> Verdict:
        raise UsageError("Verdicts are given by the model itself; ask for it without the adapter.", param="model")
