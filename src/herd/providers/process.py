"""An engine's process: started, written to, read from, watched, ended. What its frames mean is the supervisor's business."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol, cast, final

from herd.processes import start_process
from herd.providers.frames import Beat, Begin, Frame, FrameReader, Ready, to_bytes
from herd.providers.packing import BadFrame
from herd.records import dataclass

LOOK_S = 0.25
MANY_DEATHS = 3
"""After so many young deaths in a row nothing is asked of a process that is not there yet."""
END_S = 3.0
"""A process whose socket was closed may take so long to end."""
_LOG = logging.getLogger("herd.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine's process is run.

    model           as for `herd.load`
    load            further arguments of `herd.load`, by name
    adapters        LoRA adapters that are loaded at the start: names and paths
    max_waiting     requests that may wait for their turn; one more is refused. As many of low priority may wait besides
    silence_s       seconds without a word after which the process counts as hung, and is killed
    step_s          seconds after which a single step counts as hung
    pauses_s        seconds to wait before the start after a process that died young, after the second such one, and so on; the last
                    one counts for all further ones
    young_s         seconds of life with which a process did not die young
    """

    model: str
    load: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    max_waiting: int = 1024
    silence_s: float = 15.0
    step_s: float = 900.0
    pauses_s: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
    young_s: float = 20.0


class Process(Protocol):
    """One life of whatever runs an engine, as a supervisor sees it."""

    born_at: float

    @property
    def process_id(self) -> int: ...

    def write(self, data: bytes) -> None: ...

    async def aclose(self) -> None: ...


@final
class EngineProcess(asyncio.Protocol):
    """One life of an engine's process. `ended` is told once, when it is gone or was given up; no frame comes after that. `CapacityError`
    if the system starts no process."""

    def __init__(
        self,
        begin: Begin,
        *,
        silence_s: float,
        step_s: float,
        frame: Callable[[Frame], None],
        ended: Callable[[EngineProcess], None],
    ) -> None:
        self._silence_s, self._step_s = silence_s, step_s
        self._frame, self._ended = frame, ended
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._is_ready = self._is_gone = False
        self._is_cut = asyncio.Event()
        self.born_at = self._heard_at = time.monotonic()
        self._process, self._socket = start_process("herd.api.serving", "The engine's process")
        self._socket.setblocking(False)
        self._connecting = self._loop.create_task(self._connect(self._socket, to_bytes(begin)))
        self._look = self._loop.call_later(LOOK_S, self._watch)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._is_gone:
            self._transport.write(data)

    async def aclose(self) -> None:
        """Closes the socket, which ends the process; kills it if it does not."""
        self._forget()
        await self._is_cut.wait()
        deadline = time.monotonic() + END_S
        while self._process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self.kill()
        while self._process.poll() is None:
            await asyncio.sleep(0.01)

    def kill(self) -> None:
        """At once, and whatever it does."""
        if self._process.poll() is None:
            self._process.kill()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        try:
            for frame in self._reader.feed(data):
                if self._is_gone:
                    return
                if isinstance(frame, Ready):
                    self._is_ready = True
                if isinstance(frame, Beat) and frame.step_s > self._step_s:
                    self._give_up(f"a step has taken {frame.step_s:.0f} s")
                self._frame(frame)
        except BadFrame as problem:
            self._give_up(str(problem))

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_cut.set()
        self._give_up("")

    # watching

    async def _connect(self, connection: socket.socket, first: bytes) -> None:
        await self._loop.create_connection(lambda: self, sock=connection)
        self.write(first)

    def _watch(self) -> None:
        """Looks now and then whether the process lives. While it loads it may be silent: reading files can take any time."""
        silent_s = time.monotonic() - self._heard_at
        if self._process.poll() is not None:
            self._give_up(f"it ended with status {self._process.returncode}")
        elif self._is_ready and silent_s > self._silence_s:
            self._give_up(f"nothing was heard of it for {silent_s:.0f} s")
        else:
            self._look = self._loop.call_later(min(LOOK_S, self._silence_s / 4), self._watch)

    def _give_up(self, reason: str) -> None:
        if self._is_gone:
            return
        if reason:
            _LOG.warning("The engine's process %d is given up: %s.", self.process_id, reason)
        self._forget()
        self.kill()
        _reap(self._loop, self._process)
        self._ended(self)

    def _forget(self) -> None:
        self._is_gone = True
        self._look.cancel()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._connecting.cancel()
            self._socket.close()
            self._is_cut.set()


def _reap(loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes]) -> None:
    """Takes a killed process' status when it is there, so that it does not stay behind as a name without a life."""
    if process.poll() is None and not loop.is_closed():
        loop.call_later(0.01, _reap, loop, process)


@final
class Deaths:
    """How often a model's processes died, and how long to wait before the next one starts.

    pauses_s    seconds to wait after a process that died young, after the second such one in a row, and so on; the last one counts for
                all further ones
    young_s     seconds of life with which a process did not die young
    """

    def __init__(self, pauses_s: Sequence[float], young_s: float) -> None:
        self._pauses_s = pauses_s
        self._young_s = young_s
        self.young = self.all = 0

    def note(self, lived_s: float) -> float:
        """One more; 0 seconds for a process that never answered. Returns how long to wait before the next."""
        self.all += 1
        self.young = 0 if lived_s >= self._young_s else self.young + 1
        return self._pauses_s[min(max(self.young - 1, 0), len(self._pauses_s) - 1)]

    @property
    def are_many(self) -> bool:
        return self.young >= MANY_DEATHS
