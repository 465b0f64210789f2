"""Waiting for the first process, however long it takes: for a teacher's pass over all data, say, while the others have nothing to do.

An operation in which processes meet has a limit of minutes, after which it fails. So who only waits looks into the store that torchrun's
processes share, again and again, without a limit for as long as the first process gives signs of life there.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from herd.errors import UsageError
from herd.records import dataclass

ALIVE, WORK = "herd/first/alive", "herd/first/work"


@dataclass(frozen=True, slots=True)
class Beats:
    """every_s: between signs of life, and between looks. silence_s: without a sign for so long, the first process counts as dead."""

    every_s: float = 1.0
    silence_s: float = 300.0


BEATS = Beats()


class First:
    """Works that the first process alone does, one after another, as all processes see them. Every process has to come by each of them."""

    def __init__(self, store: Any, is_first: bool, beats: Beats = BEATS) -> None:
        self._store, self._beats = store, beats
        self._number = 0
        self._is_over = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="alive", daemon=True) if is_first else None
        if self._beating is not None:
            store.set(ALIVE, "0")
            self._beating.start()

    def is_done(self, is_so: bool) -> None:
        """In the first process: whether its next work is done, or has failed."""
        self._number += 1
        self._store.set(f"{WORK}/{self._number}", "done" if is_so else "failed")

    def wait(self) -> bool:
        """In the others: whether the first process's next work was done. `UsageError` when it is dead."""
        self._number += 1
        key = f"{WORK}/{self._number}"
        silent_s, heard = 0.0, b""
        while not self._asked(self._store.check, [key]):
            time.sleep(self._beats.every_s)
            sign = self._asked(self._store.get, ALIVE)
            silent_s = silent_s + self._beats.every_s if sign == heard else 0.0
            heard = sign
            if silent_s >= self._beats.silence_s:
                raise UsageError(
                    f"The first process has given no sign of life for {silent_s:.0f} s; it has died or hangs. See what it says."
                )
        return bool(self._asked(self._store.get, key) == b"done")

    def close(self) -> None:
        """Ends the signs of life."""
        self._is_over.set()
        if self._beating is not None:
            self._beating.join()

    def _asked(self, question: Any, *of: Any) -> Any:
        try:
            return question(*of)
        except RuntimeError as problem:  # torch's errors of the network are
            raise UsageError(f"The first process is gone, and with it this run; see what it says. ({problem})") from problem

    def _beat(self) -> None:
        number = 0
        while not self._is_over.wait(self._beats.every_s):
            number += 1
            try:
                self._store.set(ALIVE, str(number))
            except RuntimeError:  # whoever keeps the store is gone, and says so itself
                return
