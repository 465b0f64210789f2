"""Starting up with two cores: words in one thread while weights are packed in another.

A vocabulary is hundreds of thousands of small objects, made in Python; weights are packed by native code that needs Python
for microseconds, once per matrix. Left alone the two hinder each other: the cycle collector walks the growing lists again
and again, and a thread that wants the interpreter back waits 5 ms each time.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Result = TypeVar("Result")

_SWITCH_S = 0.0002


class Meanwhile(Generic[Result]):
    """A function that runs in its own thread from now on. `result()` waits and gives what it returned, or raises what it raised."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._result: list[Result] = []
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="herd-meanwhile", daemon=True)
        self._thread.start()

    def result(self) -> Result:
        self.wait()
        if self._problem is not None:
            raise self._problem
        return self._result[0]

    def wait(self) -> None:
        """Until it is done, whatever came of it."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._result.append(self._function())
        except BaseException as problem:  # raised again where the result is asked for
            self._problem = problem


@contextmanager
def quick_start() -> Iterator[None]:
    """No cycle collector and quick changes between threads, both as before afterwards."""
    interval, collects = sys.getswitchinterval(), gc.isenabled()
    sys.setswitchinterval(_SWITCH_S)
    gc.disable()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        if collects:
            gc.enable()
