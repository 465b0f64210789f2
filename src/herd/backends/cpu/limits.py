"""What this machine can do at most, measured by loops that do nothing else: the yardstick of `herd bench`.

Each figure is the median of a few rounds, with as many threads as the model would use. On a machine that others use too
they move from minute to minute: measure them beside what is compared with them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from herd import _core
from herd.backends.cpu.machine import make_machine
from herd.errors import UsageError

# Larger than the caches of today's desktop processors together.
_READ_BYTES = 256 << 20
_MEASUREMENTS = 5
_OPERATIONS_SECONDS = 0.02


def measure_bandwidth(threads: int | None = None) -> float:
    """Bytes per second that all threads together read from memory, each its own part of 256 MB."""
    machine = make_machine(threads)
    data = np.ones(_READ_BYTES, np.uint8)
    return _median(lambda: machine.bytes_read_per_second(data, 1))


def measure_int8(threads: int | None = None) -> float:
    """Int8 operations per second (a multiply and an add count as two), by the instructions that products use."""
    return _measure_operations(make_machine(threads), _core.Machine.int8_operations_per_second)


def measure_float32(threads: int | None = None) -> float:
    """Float32 operations per second (a fused multiply-add counts as two)."""
    return _measure_operations(make_machine(threads), _core.Machine.float_operations_per_second)


def measure_bf16(threads: int | None = None) -> float:
    """Bf16 operations per second (a multiply and an add count as two). `UsageError` where `multiplies_bf16` says no."""
    machine = make_machine(threads)
    if not machine.multiplies_bf16:
        raise UsageError(f"{machine.isa} has no dot product of bf16; such weights are multiplied in float32.")
    return _measure_operations(machine, _core.Machine.bf16_operations_per_second)


def multiplies_bf16() -> bool:
    """Whether the instruction set in use multiplies bf16 weights by dot products of bf16; else they are widened to float32."""
    return make_machine(1).multiplies_bf16


def measure_peak(kind: str, threads: int | None = None) -> float:
    """Operations per second in this number format: int8, bf16 or float32."""
    return {"int8": measure_int8, "bf16": measure_bf16, "float32": measure_float32}[kind](threads)


def _measure_operations(machine: _core.Machine, loop: Callable[[_core.Machine, int], float]) -> float:
    rounds = _enough_rounds(machine, loop)
    return _median(lambda: loop(machine, rounds))


def _enough_rounds(machine: _core.Machine, loop: Callable[[_core.Machine, int], float]) -> int:
    """So many that one measurement is long enough to trust."""
    rounds = 1000
    while True:
        before = time.perf_counter()
        loop(machine, rounds)
        if time.perf_counter() - before >= _OPERATIONS_SECONDS:
            return rounds
        rounds *= 4


def _median(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(_MEASUREMENTS))
