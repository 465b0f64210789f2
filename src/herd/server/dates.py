"""The dates of what a server keeps: files, answers, batches, jobs, and when they go.

They follow the time that passes. Where the clock of the system is set while the server runs, by a time server or a person, nothing is
gone sooner for that, and nothing stays longer. Dates that are only shown, and those on which keys expire, are the system's own.
"""

from __future__ import annotations

import time

_BEGIN = time.time() - time.monotonic()


def now() -> int:
    """Whole seconds since 1970: what the clock of the system said when this process began, and what has passed since."""
    return int(_BEGIN + time.monotonic())
