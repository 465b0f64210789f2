"""What weights and cache take, from the config alone: the published anchors come out."""

from __future__ import annotations

import pytest

from herd.family.catalogue import find
from herd.family.weighing import cache_per_token, weights_at


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("llama-2-7b", 524_288),
        ("llama-2-13b", 819_200),
        ("llama-2-70b", 327_680),
        ("llama-3.1-8b", 131_072),
        ("llama-3.1-70b", 327_680),
        ("llama-3.1-405b", 516_096),
        ("llama-3.2-1b", 32_768),
        ("llama-3.2-3b", 114_688),
        ("llama-4-scout", 196_608),
        ("llama-4-maverick", 196_608),
    ],
)
def test_the_cache_takes_the_published_bytes_for_each_token(name: str, per_token: int) -> None:
    assert cache_per_token(find(name).config()) == per_token


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-11b-vision", "llama-4-scout", "muse-glimmer-30b", "prompt-guard-2-22m"])
def test_weights_take_two_bytes_at_16_bits_and_a_scale_more_than_their_bits_below(name: str) -> None:
    release = find(name)
    config, parameters = release.config(), release.parameters
    assert parameters is not None and weights_at(config, 16) == 2 * parameters
    assert 1.0 < weights_at(config, 8) / (parameters * 34 / 32) < 1.02
    assert 1.0 < weights_at(config, 4) / (parameters * 18 / 32) < 1.05


def test_scout_fits_one_gpu_of_80_gb_at_4_bits_only() -> None:
    config = find("llama-4-scout").config()
    assert weights_at(config, 4) < 80e9 < weights_at(config, 8)
