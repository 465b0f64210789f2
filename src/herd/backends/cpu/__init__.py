"""The fast backend: a traced program of native kernels on the processor."""

from herd.backends.cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
