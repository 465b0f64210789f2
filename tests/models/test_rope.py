"""Rotary frequencies against published values and against `transformers`, for every kind of scaling."""

from __future__ import annotations

import math

import pytest

from herd.models.rope import Divisors, Linear, Llama3, Rope, Yarn, yarn_magnitude

FACTOR_8 = Llama3(8.0, 1.0, 4.0, 8192)
FACTOR_32 = Llama3(32.0, 1.0, 4.0, 8192)

# Values to ten digits, in float64, by index of the frequency.
KNOWN = {
    "llama-2": (Rope(1e4, 128), {1: 8.659643234e-01, 2: 7.498942093e-01, 16: 1e-01, 32: 1e-02, 48: 1e-03, 63: 1.154781985e-04}),
    "code-llama": (Rope(1e6, 128), {1: 8.058421878e-01, 32: 1e-03, 63: 1.240937761e-06}),
    "llama-3": (
        Rope(5e5, 128),
        {1: 8.146172339e-01, 16: 3.760603093e-02, 28: 3.211445995e-03, 31: 1.736046702e-03, 32: 1.414213562e-03, 63: 2.455140791e-06},
    ),
    "llama-3.1": (
        Rope(5e5, 128, FACTOR_8),
        {
            1: 8.146172339e-01, 16: 3.760603093e-02, 28: 3.211445995e-03, 29: 2.166570764e-03, 30: 1.371893568e-03, 31: 8.567514129e-04,
            32: 5.248461610e-04, 33: 3.126937504e-04, 34: 1.785078128e-04, 35: 9.556212354e-05, 63: 3.068925989e-07,
        },
    ),
    "llama-3.2-3b": (
        Rope(5e5, 128, FACTOR_32),
        {
            28: 3.211445995e-03, 29: 2.118406997e-03, 30: 1.290547928e-03, 31: 7.625412034e-04, 32: 4.295567966e-04,
            33: 2.227635015e-04, 34: 9.708287803e-05, 35: 2.389053088e-05, 63: 7.672314972e-08,
        },
    ),
    "llama-3.2-1b": (
        Rope(5e5, 64, FACTOR_32),
        {14: 3.211445995e-03, 15: 1.290547928e-03, 16: 4.295567966e-04, 17: 9.708287803e-05, 18: 1.946163818e-05, 31: 9.418306725e-08},
    ),
    "scout": (
        Rope(5e5, 128, Llama3(16.0, 1.0, 1.0, 8192)),
        {34: 9.384738704e-04, 35: 4.778106177e-05, 36: 3.892327637e-05, 63: 1.534462994e-07},
    ),
}  # fmt: skip

SCALINGS = {
    "linear": (Linear(4.0), {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        FACTOR_8,
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    ),
    "yarn": (Yarn(16.0, 4096), {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}),
    "yarn with its own ramp": (
        Yarn(4.0, 8192, beta_fast=24.0, beta_slow=2.0, truncate=False),
        {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "beta_fast": 24.0, "beta_slow": 2.0,
            "truncate": False,
        },
    ),
    "yarn with an attention factor": (
        Yarn(4.0, 8192, magnitude=1.25),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "attention_factor": 1.25},
    ),
    "yarn with mscale": (
        Yarn(40.0, 4096, magnitude=yarn_magnitude(40.0, 1.0, 0.7)),
        {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.7},
    ),
    "yarn that does not stretch": (Yarn(1.0, 4096), {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 4096}),
    "yarn with a ramp of no width": (
        Yarn(4.0, 64, beta_fast=10.0, beta_slow=10.0, truncate=False),
        {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 10.0, "beta_slow": 10.0,
            "truncate": False,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_frequencies_are_the_published_ones(name: str) -> None:
    rope, known = KNOWN[name]
    frequencies = rope.frequencies()
    assert len(frequencies) == rope.width // 2
    assert frequencies[0] == 1.0
    for index, value in known.items():
        assert frequencies[index] == pytest.approx(value, rel=5e-10), index


def test_the_divisors_that_gguf_stores_are_those_of_llama3_scaling() -> None:
    plain, scaled = Rope(5e5, 128).frequencies(), Rope(5e5, 128, FACTOR_8).frequencies()
    divisors = tuple(omega / stretched for omega, stretched in zip(plain, scaled, strict=True))
    expected = {28: 1, 29: 1.2074839, 30: 1.5534146, 31: 2.0263132, 32: 2.6945297, 33: 3.6842525, 34: 5.2573266, 35: 8}
    for index, value in expected.items():
        assert divisors[index] == pytest.approx(value, rel=1e-7)
    assert Rope(5e5, 128, Divisors(divisors)).frequencies() == pytest.approx(scaled, rel=1e-15)


def test_a_ramp_of_no_width_at_the_very_wavelength_keeps_the_frequency() -> None:
    turns = 8192 / (2 * math.pi)
    assert Rope(5e5, 128, Llama3(16.0, turns, turns, 8192)).frequencies()[0] == 1.0


def test_only_yarn_changes_the_magnitude() -> None:
    assert Rope(1e4, 128).magnitude == Rope(1e4, 128, Linear(4.0)).magnitude == Rope(5e5, 128, FACTOR_8).magnitude == 1.0
    assert Rope(1e4, 128, Yarn(16.0, 4096)).magnitude == pytest.approx(0.1 * math.log(16.0) + 1.0)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", SCALINGS)
def test_scaling_agrees_with_transformers(name: str, width: int) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, parameters = SCALINGS[name]
    config = LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        head_dim=width,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": 5e5, **parameters},
    )
    expected, magnitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    rope = Rope(5e5, width, scaling)
    assert rope.frequencies() == pytest.approx(expected.tolist(), rel=1e-5)
    assert rope.magnitude == pytest.approx(magnitude, rel=1e-12)
