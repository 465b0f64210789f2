"""What a machine among several runs for a server elsewhere: an actor of Ray's that hands frames on between it and an engine's process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import final

from herd.providers.frames import Begin, Frame, from_body, to_bytes
from herd.providers.packing import BadFrame
from herd.providers.process import EngineProcess

LENGTH_BYTES = 4
PULSE_S = 5.0
"""A replica hears of its server at least so often,"""
ABANDONED_S = 60.0
"""and ends its engine when it did not hear of it for so long: the server was killed, or is cut off."""


@final
class Replica:
    """The actor. Its engine is named by its process' id, so that a server that was replaced by another cannot disturb that one's."""

    def __init__(self) -> None:
        self._relay: _Relay | None = None

    async def start(self, begin: bytes, silence_s: float, step_s: float) -> int:
        """Starts an engine; one that ran before ends. Returns its process' id."""
        if self._relay is not None:
            await self._relay.aclose()
        frame = from_body(begin[LENGTH_BYTES:])
        if not isinstance(frame, Begin):
            raise BadFrame(f"The first frame is {type(frame).__name__}; expected Begin.")
        self._relay = _Relay(frame, silence_s, step_s)
        return self._relay.process_id

    async def listen(self, process_id: int) -> AsyncIterator[bytes]:
        """What the engine says, as frames, until it ends."""
        relay = self._find(process_id)
        while relay is not None and (data := await relay.read()):
            yield data

    async def write(self, process_id: int, data: bytes) -> bool:
        """Whole frames for the engine, or nothing but a sign of life. False: it is gone."""
        relay = self._find(process_id)
        if relay is not None:
            relay.write(data)
        return relay is not None

    async def stop(self, process_id: int) -> None:
        relay = self._find(process_id)
        if relay is not None:
            self._relay = None
            await relay.aclose()

    async def process_ids(self) -> tuple[int, int | None]:
        """The actor's and its engine's."""
        return os.getpid(), None if self._relay is None else self._relay.process_id

    def _find(self, process_id: int) -> _Relay | None:
        return self._relay if self._relay is not None and self._relay.process_id == process_id else None


@final
class _Relay:
    """An engine's process whose frames are held until they are taken."""

    def __init__(self, begin: Begin, silence_s: float, step_s: float) -> None:
        self._held = bytearray()
        self._news = asyncio.Event()
        self._is_over = False
        self._heard_at = time.monotonic()
        self._process = EngineProcess(begin, silence_s=silence_s, step_s=step_s, frame=self._said, ended=lambda _: self._end())
        self._watching = asyncio.create_task(self._watch())

    @property
    def process_id(self) -> int:
        return self._process.process_id

    async def read(self) -> bytes:
        """What was said since the last time; nothing when the engine has ended."""
        while not self._held and not self._is_over:
            self._news.clear()
            await self._news.wait()
        data = bytes(self._held)
        self._held.clear()
        return data

    def write(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        if data:
            self._process.write(data)

    async def aclose(self) -> None:
        self._watching.cancel()
        self._end()
        await self._process.aclose()

    def _said(self, frame: Frame) -> None:
        self._held += to_bytes(frame)
        self._news.set()

    def _end(self) -> None:
        self._is_over = True
        self._news.set()

    async def _watch(self) -> None:
        while time.monotonic() - self._heard_at < ABANDONED_S:
            await asyncio.sleep(PULSE_S)
        self._end()
        await self._process.aclose()
