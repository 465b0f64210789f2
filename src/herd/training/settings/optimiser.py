"""Which optimiser, and its numbers. Free of torch, so that settings are read quickly."""

from __future__ import annotations

import math

from herd.errors import UsageError, did_you_mean
from herd.models.weights import Kind
from herd.records import dataclass

NAMES = ("adamw", "muon")
SCALES = ("match_rms", "spectral", "none")
PRODUCTS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserSettings:
    """How weights are changed.

    name           "adamw", or "muon" (matrices and experts; AdamW for what is not)
    beta1, beta2   how much of its past a first and a second moment keep at a step of AdamW
    eps            added to the root of the second moment
    weight_decay   share of a weight that is taken away at a step, times the learning rate
    decayed        kinds of weights that decay
    momentum       of Muon: how much of its past the momentum keeps
    nesterov       of Muon: look one step ahead
    iterations     of Newton-Schulz
    scale          of Muon's update: "match_rms" 0.2 sqrt(max(out, in)), "spectral" sqrt(max(1, out / in)), or "none"
    products       what Newton-Schulz computes in: "float32", "bfloat16", or "auto": bfloat16 on a GPU, float32 on a CPU
    """

    name: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decayed: tuple[str, ...] = ("matrix", "experts", "router", "head", "embedding")
    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    scale: str = "match_rms"
    products: str = "auto"

    def __post_init__(self) -> None:
        check_optimiser(self)


def check_optimiser(settings: OptimiserSettings) -> None:
    """`UsageError` for settings that cannot be, with what is wrong."""
    for what, value, known in (
        ("optimiser", settings.name, NAMES),
        ("scale of Muon's updates", settings.scale, SCALES),
        ("type for Newton-Schulz products", settings.products, PRODUCTS),
        *(("kind of weight", kind, tuple(each.value for each in Kind)) for kind in settings.decayed),
    ):
        if value not in known:
            raise UsageError(f"There is no {what} {value!r}: {', '.join(known)}{did_you_mean(value, known)}")
    for name in ("beta1", "beta2", "momentum"):
        if not 0 <= getattr(settings, name) < 1:
            raise UsageError(f"The optimiser's {name} is {getattr(settings, name)}; it must be from 0 to below 1.")
    for name in ("eps", "weight_decay"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise UsageError(f"The optimiser's {name} is {getattr(settings, name)}; it must be a finite number, 0 or more.")
    if settings.iterations < 1:
        raise UsageError(f"Newton-Schulz has {settings.iterations} iterations; it needs at least 1.")
