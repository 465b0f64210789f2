"""The other processes of a model, as the first one sees them: started, told, heard, watched, ended."""

from __future__ import annotations

import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import final

from herd.backends.base import MemoryUse
from herd.backends.torch.ranks.frames import Begin, Done, Frame, FrameReader, Here, Used, Wrong, to_bytes
from herd.errors import EngineLost, HerdError
from herd.processes import start_process

END_S = 3.0
"""A process whose socket was closed may take so long to end."""
RECEIVED_BYTES = 1 << 20


@final
class Rank:
    """One of the others. `lost` is told once, from a thread, why it is gone, unless it was ended by `close`."""

    def __init__(self, begin: Begin, lost: Callable[[str], None]) -> None:
        self.index, self._count = begin.index, begin.count
        self._lost, self._wait_s = lost, begin.wait_s
        self._answers: queue.SimpleQueue[Here | Done | Wrong | None] = queue.SimpleQueue()
        self._is_closed = False
        self.problem: Wrong | None = None  # what it said last that went wrong, until that was told
        self.memory = MemoryUse(0, 0, 0)
        self._process, self._socket = start_process("herd.backends.torch.ranks.follower", "A process of the model")
        self._socket.settimeout(begin.wait_s)
        threading.Thread(target=self._read, daemon=True, name=f"rank {self.index}").start()
        try:
            self.send(to_bytes(begin))
        except EngineLost:
            self.dismiss()
            self.close()
            raise

    @property
    def process_id(self) -> int:
        return self._process.pid

    def send(self, pieces: Iterable[bytes | memoryview]) -> None:
        """`EngineLost` if it takes nothing any more."""
        try:
            for piece in pieces:
                self._socket.sendall(piece)
        except OSError as problem:
            raise EngineLost(f"{self._name} of this model takes no orders any more ({problem}).") from problem

    def answer(self, wait_s: float) -> Here | Done:
        """What it says to the order that was sent before. Raises what it could not do, and `EngineLost` if it says nothing for so long."""
        try:
            frame = self._answers.get(timeout=wait_s)
        except queue.Empty:
            raise EngineLost(f"{self._name} of this model has not answered for {wait_s:.0f} s.") from None
        if frame is None:
            self._answers.put(None)
            raise EngineLost(self.end())
        if isinstance(frame, Wrong):
            self.problem = None
            raise frame.error
        if isinstance(frame, Done):
            self.memory = frame.memory
        return frame

    def kill(self) -> None:
        """At once, and whatever it does."""
        if self._process.poll() is None:
            self._process.kill()

    def dismiss(self) -> None:
        """Closes the socket, which ends the process."""
        self._is_closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Waits for the end of a process that was dismissed; kills it if it does not end."""
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()

    def end(self) -> str:
        """How it ended, for people."""
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return f"{self._name} of this model has closed its socket."
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self._name} of this model {how}{': ' + self.problem.message if self.problem is not None else '.'}"

    @property
    def _name(self) -> str:
        return f"Process {self.index + 1} of {self._count} ({self.process_id})"

    def _read(self) -> None:
        reader = FrameReader()
        try:
            while True:
                try:
                    data = self._socket.recv(RECEIVED_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    break
                for frame in reader.feed(data):
                    self._heard(frame)
        except OSError:
            pass  # as good as the end of the stream
        self._answers.put(None)
        if not self._is_closed:
            self._lost(self.end())

    def _heard(self, frame: Frame) -> None:
        if isinstance(frame, Used):
            self.memory = frame.memory
        elif isinstance(frame, Wrong | Here | Done):
            if isinstance(frame, Wrong):
                self.problem = frame
            self._answers.put(frame)


def answers(ranks: Iterable[Rank], wait_s: float) -> list[Here | Done]:
    """One of each, in their order. When all have said something the first problem is raised; that a process is gone, only if no other says
    why: one that fails takes the others with it."""
    found: list[Here | Done] = []
    problems: list[HerdError] = []
    for rank in ranks:
        try:
            found.append(rank.answer(wait_s))
        except HerdError as problem:
            problems.append(problem)
    if problems:
        raise next((each for each in problems if not isinstance(each, EngineLost)), problems[0])
    return found
