"""SIGINT and SIGTERM: the first asks for an end after the step, the second acts at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """`signal_name` is empty until a signal has come."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)


@contextmanager
def stopping() -> Iterator[Stopping]:
    """While the block runs, a first signal is only noted; then what was in force before is again, so that a second acts at once.
    Outside of the main thread, where Python gives no signals, nothing is changed."""
    found = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def back() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, _frame: FrameType | None) -> None:
        found.signal_name = signal.Signals(number).name
        back()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield found
    finally:
        back()
