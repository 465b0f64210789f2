"""The fast backend: a traced program of native kernels on the processor."""

from herd.backends.cpu.backend import CpuBackend
from herd.backends.cpu.kept import Origin

__all__ = ["CpuBackend", "Origin"]
