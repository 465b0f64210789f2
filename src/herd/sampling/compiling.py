"""Compiles grammars where they can do no harm before they are compiled where they are used.

A grammar, a schema or a regular expression comes from whoever asks, and can be made to take minutes, gigabytes, or the whole stack. So
it is tried first in a process of its own (`compiling_child.py`), which may use `SECONDS` of a processor and `MEMORY_BYTES`. If it takes
more, or dies, the process is replaced and the grammar is refused. What passed is compiled once more where it is used: the same
work, known to be small. Verdicts are remembered, so that asking again costs nothing, in either case.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from herd.errors import CapacityError, UsageError
from herd.records import dataclass

SECONDS = 1.0
"""Of processor time that a grammar may take."""
PATIENCE_S = 5.0
"""For the same on a machine that has other things to do."""
START_S = 20.0
MEMORY_BYTES = 256 << 20
VERDICTS = 4096
LIMITS = {"step_lexer_fuel": 100_000, "step_max_items": 25_000, "max_lexer_states": 25_000}
"""Of what `llguidance` may do for one token, and keep for one grammar; smaller than its own."""
_FRAME_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a grammar, "" if nothing is; and the memory that it took."""

    problem: str
    num_bytes: int


class Compiler:
    """Says whether grammars compile, one at a time. Starts its process when first needed. Usable from several threads."""

    def __init__(
        self, tokens: Sequence[bytes], special_ids: Sequence[int], *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        """tokens: the bytes of each; the last one is the end of a text."""
        self._start = {"tokens": [token.decode("latin-1") for token in tokens], "special_ids": list(special_ids)}
        self._start |= {"limits": LIMITS, "memory_bytes": memory_bytes}
        self._seconds = seconds
        self._child: _Child | None = None
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()

    def begin(self) -> None:
        """Starts the process now, so that nobody waits for it later. If that fails, `check` tries again."""
        with self._lock, contextlib.suppress(CapacityError):
            self._ready()

    def check(self, grammar: str) -> Verdict:
        """What is wrong with a grammar, and how large it is. `CapacityError` if the process cannot be started."""
        key = blake2b(grammar.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            verdict = self._verdicts.get(key)
            if verdict is None:
                verdict = self._try(grammar)
                self._verdicts[key] = verdict
                while len(self._verdicts) > VERDICTS:
                    self._verdicts.popitem(last=False)
            else:
                self._verdicts.move_to_end(key)
            return verdict

    def close(self) -> None:
        """Ends the process. Another is started if the compiler is used again."""
        with self._lock:
            self._end()

    def _try(self, grammar: str) -> Verdict:
        try:
            return self._ready().ask(grammar, self._seconds)
        except _TooMuch as problem:
            self._end()
            return Verdict(str(problem), 0)

    def _ready(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._start)
            weakref.finalize(self, self._child.kill)
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class _TooMuch(Exception):
    """The process was killed, or has died."""


class _Child:
    """The process, and what is said to it."""

    def __init__(self, start: dict[str, Any]) -> None:
        program = Path(__file__).with_name("compiling_child.py")
        try:
            # -P: the folder of the program, which has a random.py, is no place to import from.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is not meant for it
            )
        except OSError as error:
            raise CapacityError(f"The process that compiles grammars could not be started ({error.strerror}). Try again later.") from None
        assert self._process.stdout is not None
        self._poll = select.poll()
        self._poll.register(self._process.stdout, select.POLLIN | select.POLLHUP)
        try:
            self._send(start)
            self._receive(START_S, START_S)
        except _TooMuch:
            self.kill()
            raise CapacityError("The process that compiles grammars did not start. Try again later.") from None

    def ask(self, grammar: str, seconds: float) -> Verdict:
        """The verdict on a grammar. `_TooMuch` if it took more than it may."""
        self._send(grammar)
        problem, num_bytes = self._receive(seconds, max(PATIENCE_S, seconds))
        return Verdict(str(problem), int(num_bytes))

    def kill(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.kill()
        self._process.wait()

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        data = json.dumps(value).encode()
        try:
            self._process.stdin.write(struct.pack("<I", len(data)) + data)
            self._process.stdin.flush()
        except OSError:
            raise _TooMuch("it cannot be compiled") from None

    def _receive(self, seconds: float, patience_s: float) -> Any:
        """The next frame, if it comes within so many seconds of the process' time, and of the clock's."""
        assert self._process.stdout is not None
        used, deadline = self._used(), time.monotonic() + patience_s
        data = b""
        while len(data) < 4 or len(data) < 4 + struct.unpack("<I", data[:4])[0]:
            left = min(seconds - (self._used() - used), deadline - time.monotonic())
            if left <= 0:
                raise _TooMuch(f"it takes more than {seconds:g} s to compile")
            if self._poll.poll(left * 1000):
                piece = os.read(self._process.stdout.fileno(), _FRAME_MAX)
                if not piece:
                    raise _TooMuch("it takes too much memory to compile, or is nested too deeply")
                data += piece
        return json.loads(data[4:])  # written by our own program, which a grammar can at worst make silent

    def _used(self) -> float:
        """Seconds of a processor that the process has used; of the clock, where that is not known."""
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                return time.clock_gettime((~self._process.pid << 3) | 2)  # the process' own clock (linux/posix-timers.h)
        return time.monotonic()


def refusal(problem: str, what: str, param: str | None) -> UsageError:
    """The error for a grammar that does not compile. Texts of libraries are read for what they say, not passed on."""
    return UsageError(f"{what} cannot be held to: {_said(problem)}.", param=param)


def _said(problem: str) -> str:
    line = problem.strip().splitlines()[0][:300] if problem.strip() else ""
    for sign, (text, is_told) in _SAID.items():
        found = line.find(sign)
        if found >= 0:
            rest = "".join(character if character.isprintable() else " " for character in line[found + len(sign) :]).strip(" :.")
            return f"{text} ({rest[:160]})" if rest and is_told else text
    return line if line in _OURS or line.startswith("it takes ") else "it is damaged, or larger than is allowed"


_OURS = ("nothing satisfies it", "only the empty text satisfies it")
# What llguidance says -> what that means, and whether the rest of its line names something of the grammar's own.
_SAID = {
    "Unsatisfiable schema": ("nothing satisfies it", True),
    "Unimplemented keys": ("it uses keywords that a grammar cannot express", True),
    "Unknown format": ("it asks for a format that is not known", True),
    "invalid regex": ("a regular expression in it is damaged, or uses what cannot be matched in one pass", False),
    "unknown name": ("it names a rule that it does not define", True),
    "too big": ("it is too large", False),
    "too large": ("it is too large", False),
}
