"""Running the server: a socket, a loop, and how it ends.

The first SIGTERM, SIGINT or SIGHUP (the terminal is closed; not under nohup) lets running answers finish (for `grace_s` seconds), while
everything new is answered 503; the second ends at once.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import uvicorn

from herd.errors import UsageError
from herd.providers.base import Pool
from herd.providers.jobs import Jobs
from herd.server.app import build
from herd.server.front import LimitedProtocol
from herd.server.house import House, make_house
from herd.server.keys import Keys
from herd.server.operations import operation_of
from herd.server.resuming import resume
from herd.server.settings import Settings

if TYPE_CHECKING:
    from starlette.routing import Route

    from herd.server.app import App

P = TypeVar("P", bound=Pool)
LOOK_EVERY_S = 0.02
BACKLOG = 2048
SEND_BYTES = 128 << 10
"""What the system may hold for a client that does not read; more would be memory that nobody counts."""
SPARE_FILES = 256
"""Files that are open besides connections: models, logs, the database."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def listen(settings: Settings) -> socket.socket:
    """The socket of a server. `UsageError` for an address that is taken, or not ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends small writes at once (TCP_NODELAY) only where a socket says that it is TCP; else each answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as problem:
        listener.close()
        raise _cannot_listen(settings, problem) from problem
    listener.setblocking(False)
    return listener


def _cannot_listen(settings: Settings, problem: OSError) -> UsageError:
    where = f"{settings.host}:{settings.port}"
    if problem.errno == errno.EADDRINUSE:
        return UsageError(f"{where} is in use by another program. Stop it, or choose another port with --port.")
    if problem.errno in (errno.EACCES, errno.EPERM):
        return UsageError(f"{where} may not be used by this user. Choose a port of 1024 or more with --port.")
    return UsageError(f"{where} is no address of this computer to listen on ({problem.strerror}). Choose another with --host.")


def address(listener: socket.socket) -> str:
    """Where a client on this computer finds the server: http://127.0.0.1:8000."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def raise_file_limit(settings: Settings) -> None:
    """Lets this process open as many files as connections may come. `UsageError` where the system does not allow that."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UsageError(
                f"{settings.max_connections} connections need {needed} open files; this system allows {hard}."
                f" Allow more with `ulimit -n`, or fewer connections with --set max_connections={max(1, hard - SPARE_FILES)}."
            )
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def run(
    listener: socket.socket,
    settings: Settings,
    keys: Keys,
    opening: AbstractAsyncContextManager[P],
    start: Callable[[P], Awaitable[None]],
    on_ready: Callable[[House], None] = lambda house: None,
    routes: Sequence[Route] | None = None,
    jobs: Jobs | None = None,
) -> None:
    """Serves until a signal ends it.

    opening    gives the pool, and closes it at the end
    start      loads the models of the start, while the server already answers that it is not ready; what it raises ends the server
    on_ready   is called once, when they are loaded
    routes     None: all there are
    jobs       fine-tuning, where there is any
    """

    async def all_of_it() -> None:
        async with opening as pool:
            house = make_house(pool, settings, keys, jobs)
            front = Front(house, build(house, routes))
            with _signals(asyncio.get_running_loop(), front.stop):
                await _serve(front, listener, house, start(pool), on_ready)

    with listener, new_runner() as runner:
        runner.run(all_of_it())


def new_runner() -> asyncio.Runner:
    """A loop for the server: uvloop's where it is installed, which spends about half of the time on each token; else the library's own."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=new_event_loop)


async def _serve(front: Front, listener: socket.socket, house: House, starting: Awaitable[None], on_ready: Callable[[House], None]) -> None:
    """Serves; models load beside. What they fail with ends the server and is raised."""

    async def load() -> None:
        try:
            await starting
        except BaseException:
            front.stop(at_once=True)
            raise
        gc.collect()
        gc.freeze()  # what was imported stays: the cycle collector need not walk it again in the middle of answers
        on_ready(house)

    loading = asyncio.create_task(load())
    try:
        await front.serve(listener)
    finally:
        loading.cancel()
        (outcome,) = await asyncio.gather(loading, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> Iterator[None]:
    """What happens at a signal while the block runs."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before.get(getattr(signal, "SIGHUP", None)) is signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(act))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Front:
    """The web process' server."""

    def __init__(self, house: House, app: App) -> None:
        self._house = house
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        uploads = frozenset(route.path for route in app.routes if operation_of(route).uploads)
        protocol = functools.partial(
            LimitedProtocol, settings=house.settings, metrics=house.metrics, upload_paths=uploads, refusing=app.refusing
        )
        self._server = _Server(
            uvicorn.Config(
                app,
                http=cast(Any, protocol),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=max(1, int(house.settings.keep_alive_s)),
                timeout_graceful_shutdown=1,
            )
        )

    async def serve(self, listener: socket.socket) -> None:
        """Serves until it is told to stop."""
        self._loop = asyncio.get_running_loop()
        beside = [asyncio.create_task(self._tell_started()), asyncio.create_task(self._look_after())]
        await self._house.keeping.start(functools.partial(resume, self._house))
        try:
            await self._server.serve(sockets=[listener])
        finally:
            await self._house.keeping.stop()
            for task in beside:
                task.cancel()
            for connection in list(self.connections):
                connection.transport.abort()
            await asyncio.gather(*beside, return_exceptions=True)

    @property
    def connections(self) -> set[Any]:
        """The open connections."""
        return cast(set[Any], self._server.server_state.connections)

    def wait_started(self, timeout_s: float) -> None:
        """From another thread: until connections are taken."""
        if not self._started.wait(timeout_s):
            raise TimeoutError("the server does not start")

    def stop(self, at_once: bool = False) -> None:
        """From any thread. A second time, or `at_once`: without waiting for answers that run."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop, at_once or self._house.is_draining)

    def _stop(self, at_once: bool) -> None:
        if at_once:
            self._house.is_draining = True
            self._cut()
            self._server.end(at_once=True)
        elif not self._house.is_draining:
            self._house.is_draining = True
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """Waits for what runs, at most for the grace; what runs then is told that it ends."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._house.settings.grace_s
        while self._house.admission.running and loop.time() < end:
            await asyncio.sleep(LOOK_EVERY_S)
        self._cut()
        self._server.end()

    def _cut(self) -> None:
        for task in list(self._server.server_state.tasks):
            task.cancel()

    async def _look_after(self) -> None:
        """Ends connections that take too long."""
        limits = self._house.settings
        shortest_s = min(limits.header_timeout_s, limits.body_timeout_s, limits.stall_timeout_s)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, shortest_s / 4))
            for connection in list(self.connections):
                connection.check(loop.time())

    async def _tell_started(self) -> None:
        while not self._server.started:
            await asyncio.sleep(0.005)
        self._started.set()


class _Server(uvicorn.Server):
    """uvicorn's server, but for its signals, which are ours, and for how often it looks at the clock."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._is_ending = asyncio.Event()

    def end(self, *, at_once: bool = False) -> None:
        """From the server's thread."""
        self.should_exit, self.force_exit = True, at_once
        self._is_ending.set()

    async def main_loop(self) -> None:
        """Keeps the date of responses, until it is told to end."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._is_ending.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
