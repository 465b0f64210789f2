"""The machine that the cpu backend computes on, and which options it takes."""

from __future__ import annotations

import os

from herd import _core
from herd.backends.base import BackendOptions, check_processor
from herd.backends.cpu.packed import PLAIN_DTYPES
from herd.errors import UsageError


def make_machine(threads: int | None) -> _core.Machine:
    """Threads (None: as many as there are cores for this process) and the kernels of the chosen instruction set."""
    isa = os.environ.get("HERD_ISA") or _core.available_isas()[-1]
    try:
        return _core.Machine(_core.usable_cores() if threads is None else threads, isa)
    except ValueError as problem:
        raise UsageError(f"{problem}".rstrip(".") + ".") from problem


def check_options(options: BackendOptions) -> None:
    """`UsageError` for what this backend does not do."""
    if options.dtype not in PLAIN_DTYPES:
        known = ", ".join(name for name in PLAIN_DTYPES if name)
        raise UsageError(f"dtype is {options.dtype!r}; the cpu backend keeps plain matrices as stored or in one of: {known}.")
    check_processor(options, "cpu")
    for name in ("max_step_tokens", "max_step_outputs"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name} is {getattr(options, name)}; it must be at least 1.")
