"""The oracle: every operation written out in numpy, in float32 or float64. Slow, and the definition of right."""

from herd.backends.reference.backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
