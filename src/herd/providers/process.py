"""An engine's process: started, written to, read from, watched, ended. What its frames mean is the supervisor's business."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast, final

from herd.providers.frames import Beat, Begin, Frame, FrameReader, Ready, to_bytes
from herd.providers.packing import BadFrame

LOOK_S = 0.25
END_S = 3.0
"""A process whose socket was closed may take so long to end."""
_LOG = logging.getLogger("herd.engine")


class Process(Protocol):
    """One life of whatever runs an engine, as a supervisor sees it."""

    born_at: float

    @property
    def process_id(self) -> int: ...

    def write(self, data: bytes) -> None: ...

    async def aclose(self) -> None: ...


@final
class EngineProcess(asyncio.Protocol):
    """One life of an engine's process. `ended` is told once, when it is gone or was given up; no frame comes after that."""

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
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-m", "herd.api.serving", str(theirs.fileno())]
            # Not in this process' group: Ctrl-C is for the parent alone, which lets running answers finish.
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=sys.__stderr__, env=_environment(), process_group=0
            )
        self._socket = ours
        self._connecting = self._loop.create_task(self._connect(ours, to_bytes(begin)))
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


def _environment() -> dict[str, str]:
    """This process' own, with the place that `herd` was imported from, so that the same one runs there."""
    folder = Path(__file__).absolute().parent.parent.parent
    paths = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
