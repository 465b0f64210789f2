"""Rotary frequencies: base, and the ways in which a model stretches them to a longer context.

omega_i = theta^(-2i/H), i = 0 .. H/2-1; the angle of pair i at position p is p * omega_i. All values are float64.
Sources: arXiv 2104.09864 (rotary), Meta's llama-models `apply_scaling` (llama3), arXiv 2306.15595 (linear), arXiv 2309.00071 (yarn).
"""

from __future__ import annotations

import math

from herd.records import dataclass


@dataclass(frozen=True, slots=True)
class Linear:
    """All frequencies divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN: interpolation by wavelength, and a magnitude on cos and sin.

    `magnitude` None means the paper's 0.1 ln(factor) + 1. What files say instead: Hugging Face's `attention_factor` is the
    magnitude itself, its `mscale` and `mscale_all_dim` go through `yarn_magnitude`; GGUF's `rope.scaling.attn_factor` is
    multiplied with the paper's value. `truncate` rounds the ends of the ramp to whole indices, as GGUF always does.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class Divisors:
    """One divisor per frequency, as GGUF stores any fixed scaling in `rope_freqs.weight`."""

    values: tuple[float, ...]


Scaling = Linear | Llama3 | Yarn | Divisors


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of one model: `theta` is the base, `width` the part of a head that is rotated (normally all of it)."""

    theta: float
    width: int
    scaling: Scaling | None = None

    def frequencies(self) -> tuple[float, ...]:
        """omega_i after scaling, `width / 2` values."""
        plain = [self.theta ** (-2.0 * i / self.width) for i in range(self.width // 2)]
        match self.scaling:
            case None:
                return tuple(plain)
            case Linear(factor):
                return tuple(omega / factor for omega in plain)
            case Divisors(values):
                return tuple(omega / value for omega, value in zip(plain, values, strict=True))
            case Llama3() as llama3:
                return tuple(_llama3(omega, llama3) for omega in plain)
            case Yarn() as yarn:
                return _yarn(plain, self.theta, self.width, yarn)

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by: 1 except for YaRN."""
        if not isinstance(self.scaling, Yarn):
            return 1.0
        if self.scaling.magnitude is not None:
            return self.scaling.magnitude
        return yarn_magnitude(self.scaling.factor)


def yarn_magnitude(factor: float, mscale: float = 1.0, mscale_all_dim: float = 0.0) -> float:
    """What YaRN multiplies cos and sin by: 0.1 mscale ln(factor) + 1, over the same for `mscale_all_dim` (DeepSeek's addition;
    0 leaves it out). 1 for a factor that does not stretch. Hugging Face reads the two only where both are given and not 0."""
    if factor <= 1.0:
        return 1.0
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * mscale_all_dim * math.log(factor) + 1.0)


def _llama3(omega: float, scaling: Llama3) -> float:
    wavelength = 2.0 * math.pi / omega
    if wavelength <= scaling.original_context / scaling.high_freq_factor:
        return omega
    if wavelength > scaling.original_context / scaling.low_freq_factor:
        return omega / scaling.factor
    ramp = (scaling.original_context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1.0 - ramp) * omega / scaling.factor + ramp * omega


def _yarn(plain: list[float], theta: float, width: int, yarn: Yarn) -> tuple[float, ...]:
    def index_of(rotations: float) -> float:
        """The frequency index that turns `rotations` times over the original context."""
        return width * math.log(yarn.original_context / (rotations * 2.0 * math.pi)) / (2.0 * math.log(theta))

    low, high = index_of(yarn.beta_fast), index_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low if high != low else 0.001
    kept = [1.0 - min(max((i - low) / span, 0.0), 1.0) for i in range(width // 2)]
    return tuple(omega / yarn.factor * (1.0 - keep) + omega * keep for omega, keep in zip(plain, kept, strict=True))
