"""The errors a user can meet, grouped by what to do about them.

A message says what was found, what was expected, where, and what to do. `assert` is for invariants of our own code only;
anything that a file, a person or a program on the other side can cause is one of these.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import ClassVar


class HerdError(Exception):
    """The root of the tree. `exit_code` is what the command line returns; `http_status` what a server answers."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class UsageError(HerdError):
    """The request cannot be honoured as asked: a wrong parameter, an unknown name, a prompt that is too long.

    `param`: which field of the request is meant, where it is known.
    """

    exit_code = 2
    http_status = 400

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(UsageError):
    """There is no model of this name here."""

    http_status = 404


class ContextExceeded(UsageError):
    """Prompt and answer together are longer than the context."""


class FileProblem(HerdError):
    """A file is missing, damaged, foreign, or contradicts another one. Nothing of it was used."""

    exit_code = 3
    http_status = 500


class CapacityError(HerdError):
    """Memory, disk, pages or another bounded resource does not suffice; trying later or smaller can help."""

    exit_code = 4
    http_status = 503


class Busy(CapacityError):
    """Too many others are asking. `retry_after_s`: when it makes sense to ask again."""

    http_status = 429

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlinePassed(CapacityError):
    """The time that was given for an answer is over. Asking the same again would take as long."""

    http_status = 504


class ProviderError(HerdError):
    """Somebody else's service or network failed: a hub, a package index, a remote model."""

    exit_code = 5
    http_status = 502


class EngineLost(ProviderError):
    """The process that computes has died or was ended. A new one is on its way; asking again can help."""

    http_status = 503


_LACKS = {errno.ENOMEM: "memory", errno.EMFILE: "open files", errno.ENFILE: "open files"}


def lack(problem: BaseException) -> CapacityError | None:
    """What the system has none of any more, if that is what a problem of Python's is about: threads, memory, open files. What
    starts a process tells of those by itself: its EAGAIN is also what a fault of ours would look like."""
    what = None
    if isinstance(problem, MemoryError):
        what = "memory"
    elif isinstance(problem, OSError):
        what = _LACKS.get(problem.errno or 0)
    elif isinstance(problem, RuntimeError) and any(sign in str(problem) for sign in ("start new thread", "Resource temporarily")):
        what = "threads"
    return None if what is None else CapacityError(f"The system has no {what} left for this. Try again later.")


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: the closest of the known ones, if any is close."""
    import difflib

    close = difflib.get_close_matches(str(value), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
