"""A model on several machines: replicas of it under Ray Serve, behind one `Service`.

    Replicas --Router--> Supervisor --> FarProcess ===Ray===> Replica (a Ray actor) --> EngineProcess --> engine's process

Each replica is an application of Ray Serve with one actor, which Ray places on a machine and starts again when it dies. What crosses
between this process and an actor are the frames of `providers.frames`, as bytes: all requests of a replica share one stream of them, and
what a step says of all requests crosses at once. Everything else is as with an engine on this machine: each replica has a supervisor here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any, final

from herd.errors import CapacityError, EngineLost, HerdError, UsageError
from herd.providers.base import Answer, Caller, ChatRequest, CompletionRequest, Embedding, Gauges, ModelFacts
from herd.providers.frames import Beat, Begin, Frame, FrameReader, Ready, to_bytes
from herd.providers.process import EngineOptions
from herd.providers.relaying import PULSE_S, Replica
from herd.providers.routing import Router, marks_of
from herd.providers.supervisor import Supervisor

if TYPE_CHECKING:
    from herd.text.formats.guard import Verdict
    from herd.text.messages import Message

REPLACED_S = 120.0
"""So long it is waited for Ray to put another actor in the place of one that died."""
END_S = 5.0
_LOG = logging.getLogger("herd.engine")
_OWN: set[str] = set()
"""Who uses the Ray that was started for this process, if one was."""


@final
class FarProcess:
    """An engine's process at the other end of Ray, with the face of `EngineProcess`. `handle` is Ray Serve's, of an application that has
    one `Replica`. `ended` is told once; no frame comes after that."""

    def __init__(
        self,
        handle: Any,
        begin: Begin,
        *,
        silence_s: float,
        step_s: float,
        frame: Callable[[Frame], None],
        ended: Callable[[FarProcess], None],
    ) -> None:
        self._handle = handle
        self._silence_s, self._step_s = silence_s, step_s
        self._frame, self._ended = frame, ended
        self._held = bytearray()
        self._news = asyncio.Event()
        self._is_gone = self._is_ready = False
        self.process_id = 0
        self.born_at = self._heard_at = time.monotonic()
        self._tasks = [asyncio.create_task(self._guarded(self._live(to_bytes(begin))))]

    def write(self, data: bytes) -> None:
        if not self._is_gone:
            self._held += data
            self._news.set()

    async def aclose(self) -> None:
        """Ends the engine, if Ray lets it."""
        self._forget()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.process_id:
            with suppress(Exception):  # an actor that is gone has no engine any more
                await asyncio.wait_for(_answer(self._handle.stop.remote(self.process_id)), END_S)

    async def _live(self, begin: bytes) -> None:
        self.process_id = await self._start(begin)
        self.born_at = self._heard_at = time.monotonic()
        self._tasks += [asyncio.create_task(self._guarded(work)) for work in (self._send(), self._watch())]
        reader = FrameReader()
        async for data in self._handle.options(stream=True).listen.remote(self.process_id):
            self._heard_at = time.monotonic()
            for frame in reader.feed(data):
                if self._is_gone:
                    return
                self._is_ready = self._is_ready or isinstance(frame, Ready)
                self._frame(frame)
                if isinstance(frame, Beat) and frame.step_s > self._step_s:
                    return

    async def _start(self, begin: bytes) -> int:
        """Waits for the actor if it is being replaced."""
        deadline = time.monotonic() + REPLACED_S
        while True:
            try:
                return int(await _answer(self._handle.start.remote(begin, self._silence_s, self._step_s)))
            except Exception as problem:
                if time.monotonic() > deadline or "BadFrame" in str(problem):
                    raise
                await asyncio.sleep(0.25)

    async def _send(self) -> None:
        """One call at a time, which keeps their order; what comes meanwhile goes with the next."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), PULSE_S)
            self._news.clear()
            data = bytes(self._held)
            self._held.clear()
            if not await _answer(self._handle.write.remote(self.process_id, data)):
                return

    async def _watch(self) -> None:
        while not self._is_ready or time.monotonic() - self._heard_at < self._silence_s:
            await asyncio.sleep(min(1.0, self._silence_s / 4))

    async def _guarded(self, work: Awaitable[None]) -> None:
        """Whatever ends, by itself or by an error of Ray's (there is no end of their kinds), ends this life."""
        try:
            await work
        except Exception as problem:
            _LOG.warning("A replica is given up: %s.", type(problem).__name__)
        if not self._is_gone:
            self._forget()
            self._ended(self)

    def _forget(self) -> None:
        self._is_gone = True
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()


async def _answer(response: Any) -> Any:
    return await response


@final
class Replicas:
    """A `Service` of `count` replicas, started and closed like a `Supervisor`; used in the thread of one event loop."""

    def __init__(self, options: EngineOptions, *, count: int) -> None:
        if count < 1:
            raise UsageError(f"{count} replicas are asked for; expected at least 1.")
        self._options = options
        self._name = f"herd-{secrets.token_hex(4)}"
        self._count = count
        self._router = Router(count)
        self._supervisors: list[Supervisor] = []
        self._lives = [0] * count
        self.handles: list[Any] = []

    async def start(self) -> ModelFacts:
        """Starts Ray where it does not run, then the replicas, and waits for the model in each. Raises why one cannot be loaded;
        `CapacityError` for more replicas than Ray has processors for."""
        try:
            await asyncio.to_thread(_connect, self._name, self._count, _needs(self._options))
            for number in range(self._count):
                self.handles.append(await asyncio.to_thread(_deploy, f"{self._name}-{number}", _needs(self._options)))
            self._supervisors = [Supervisor(self._options, self._starter(handle)) for handle in self.handles]
            found = await asyncio.gather(*(each.start() for each in self._supervisors))
        except BaseException:
            await self.aclose()
            raise
        if len({each.fingerprint for each in found}) > 1:
            await self.aclose()
            raise UsageError(f"{self._options.model} is another model on some machines than on others; expected the same files on all.")
        return found[0]

    async def aclose(self) -> None:
        """Ends the replicas. What is running fails. Idempotent."""
        supervisors, self._supervisors = self._supervisors, []
        await asyncio.gather(*(each.aclose() for each in supervisors))
        handles, self.handles = self.handles, []
        await asyncio.to_thread(_disconnect, self._name, len(handles))

    @property
    def is_up(self) -> bool:
        """Whether one of them can answer now."""
        return any(each.is_up for each in self._supervisors)

    @property
    def is_idle(self) -> bool:
        return all(each.is_idle for each in self._supervisors)

    # Service

    @property
    def facts(self) -> ModelFacts:
        return self._supervisors[0].facts

    @property
    def gauges(self) -> Gauges:
        """Of all together."""
        each = [supervisor.gauges for supervisor in self._supervisors]
        counts = {field.name: sum(getattr(found, field.name) for found in each) for field in fields(Gauges) if field.name != "memory_bytes"}
        uses = dict.fromkeys(use for found in each for use in found.memory_bytes)
        return Gauges(**counts, memory_bytes={use: sum(found.memory_bytes.get(use, 0) for found in each) for use in uses})

    def chat(self, request: ChatRequest) -> Answer:
        return self._for(request).chat(request)

    def complete(self, request: CompletionRequest) -> Answer:
        return self._for(request).complete(request)

    async def count(self, request: ChatRequest) -> int:
        return await self._least_busy().count(request)

    async def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]:
        return await self._least_busy().encode(text, bos=bos, specials=specials)

    async def decode(self, ids: Sequence[int]) -> str:
        return await self._least_busy().decode(ids)

    async def embed(self, inputs: Sequence[str | Sequence[int]], caller: Caller) -> list[Embedding]:
        return await self._least_busy().embed(inputs, caller)

    async def moderate(self, messages: Sequence[Message], caller: Caller) -> Verdict:
        return await self._least_busy().moderate(messages, caller)

    async def add_adapter(self, name: str, path: str) -> None:
        """To all of them, or to none."""
        found = await asyncio.gather(*(each.add_adapter(name, path) for each in self._supervisors), return_exceptions=True)
        problem = next((each for each in found if each is not None), None)
        if problem is not None:
            for supervisor, outcome in zip(self._supervisors, found, strict=True):
                if outcome is None:
                    with suppress(HerdError):  # an engine that died meanwhile has no adapter to lose
                        await supervisor.remove_adapter(name)
            raise problem

    async def remove_adapter(self, name: str) -> None:
        await asyncio.gather(*(each.remove_adapter(name) for each in self._supervisors))

    # choosing

    def _for(self, request: ChatRequest | CompletionRequest) -> Supervisor:
        if not self._supervisors:
            raise EngineLost("The model was unloaded.")
        for replica, supervisor in enumerate(self._supervisors):
            if supervisor.num_restarts != self._lives[replica]:
                self._lives[replica] = supervisor.num_restarts
                self._router.forget(replica)
        loads = [each.num_open if each.is_up else None for each in self._supervisors]
        return self._supervisors[self._router.choose(marks_of(request), loads)]

    def _least_busy(self) -> Supervisor:
        if not self._supervisors:
            raise EngineLost("The model was unloaded.")
        return min(self._supervisors, key=lambda each: (not each.is_up, each.num_open))

    @staticmethod
    def _starter(handle: Any) -> Callable[..., FarProcess]:
        return lambda begin, **options: FarProcess(handle, begin, **options)


def _needs(options: EngineOptions) -> dict[str, float]:
    """What Ray sets aside for a replica: as many processors as its engine has threads, and as many GPUs as it computes on."""
    threads = options.load.get("threads")
    is_on_gpu = str(options.load.get("device", "")).startswith("cuda")
    return {"num_cpus": int(threads) if threads else 1, "num_gpus": int(options.load.get("tensor_parallel", 1)) if is_on_gpu else 0}


def _connect(name: str, count: int, needs: dict[str, float]) -> None:
    """Joins the Ray that RAY_ADDRESS names, or starts one for this process alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray
    from ray import serve

    address = os.environ.get("RAY_ADDRESS") or "local"
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        if address == "local":
            _OWN.add(name)
    elif _OWN:
        _OWN.add(name)
    has = ray.cluster_resources()
    for resource, need in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        if has.get(resource, 0) < count * needs[need]:
            raise CapacityError(
                f"{count} replicas need {count * needs[need]:g} {resource}s; Ray has {has.get(resource, 0):g}. "
                "Ask for fewer replicas or threads, or let another machine join with `ray start`."
            )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def _deploy(name: str, needs: dict[str, float]) -> Any:
    """An application of one replica, and Ray Serve's handle of it."""
    from ray import serve

    deployment = serve.deployment(
        Replica,
        name="replica",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options=needs,
        health_check_period_s=1,
        graceful_shutdown_timeout_s=1,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    return serve.run(deployment.bind(), name=name, route_prefix=None)


def _disconnect(name: str, count: int) -> None:
    """Takes the applications away; with the last model, a Ray that was started for this process."""
    import ray
    from ray import serve

    is_last = {name} == _OWN
    _OWN.discard(name)
    with suppress(Exception):  # a Ray that is gone has taken its applications with it
        if is_last:
            ray.shutdown()
        else:
            for number in range(count):
                serve.delete(f"{name}-{number}")
