"""Mutated files against the readers; `scripts/fuzz` runs it, and a short run is part of the default tests."""

from fuzzing.running import Outcome, fuzz, main

__all__ = ["Outcome", "fuzz", "main"]
