"""The dates of what a server keeps: files, answers, batches, jobs.

Those that are shown are the system's. When something goes is reckoned in time that passes: where the clock of the system is set while the
server runs, by a time server or a person, nothing is gone sooner for that, and nothing stays longer.
"""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def _passed_s() -> float:
    """Seconds that no setting of a clock changes, and in which a machine that sleeps grows older, where the system counts so."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


_BEGIN = time.time() - _passed_s()


def shown() -> int:
    """Whole seconds since 1970, as the clock of the system has them."""
    return int(time.time())


def now() -> int:
    """Whole seconds since 1970 by which something expires: what the clock of the system said when this process began, and what has passed
    since."""
    return int(_BEGIN + _passed_s())
