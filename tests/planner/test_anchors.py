"""Published figures, reproduced by the sums: sizes of Meta's files, caches, how many devices, 10 million tokens of Scout."""

from __future__ import annotations

import datetime

import pytest

from herd.backends import base
from herd.dtypes import F16
from herd.family.catalogue import find, releases
from herd.models.architecture import architecture_of, classifying
from herd.models.cache_groups import cache_groups
from herd.models.sizes import (
    cache_bytes_per_token,
    cache_kinds,
    count_parameters,
    kept_cache_bytes,
    needed_cache_bytes,
    weight_bytes,
)
from herd.planner.devices import find_device
from herd.planner.fit import smallest
from herd.planner.formats import format_named
from herd.planner.memory import PAGE_TOKENS, STEP_TOKENS, Load, cache_format, reckon
from herd.planner.plan import answer, ask
from herd.planner.published import claims
from herd.planner.speed import Layout, Work, decode_step, prompt_seconds
from herd.planner.unknown import said_of

TODAY = datetime.date(2026, 11, 21)
CACHE_PER_TOKEN = {
    "llama-2-7b": 524_288,
    "llama-2-13b": 819_200,
    "llama-2-70b": 327_680,
    "llama-3-8b": 131_072,
    "llama-3.1-8b": 131_072,
    "llama-3.1-70b": 327_680,
    "llama-3.3-70b-instruct": 327_680,
    "llama-3.1-405b": 516_096,
    "llama-3.2-1b": 32_768,
    "llama-3.2-3b": 114_688,
    "llama-4-scout": 196_608,
    "llama-4-maverick": 196_608,
}
"""Keys and values of one token at 16 bits, before local layers are trimmed."""


@pytest.mark.parametrize("name", CACHE_PER_TOKEN)
def test_keys_and_values_of_a_token_are_the_known_bytes(name: str) -> None:
    config = find(name).config()
    assert cache_bytes_per_token(config) == CACHE_PER_TOKEN[name] == sum(kind.bytes_per_token for kind in cache_kinds(config))


@pytest.mark.parametrize("name", [name for name, r in releases().items() if r.shape is not None and classifying(r.config()) is None])
def test_caches_of_every_release_add_up(name: str) -> None:
    """By heads and widths alone, and never more than the layers keep."""
    config = find(name).config()
    kinds = cache_kinds(config)
    assert sum(kind.num_layers for kind in kinds) >= config.num_layers - 20
    for tokens in (1, 100, config.context_length):
        assert needed_cache_bytes(config, tokens) <= tokens * cache_bytes_per_token(config)
    assert needed_cache_bytes(config, 1) == cache_bytes_per_token(config)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.2-11b-vision", "llama-4-scout"])
@pytest.mark.parametrize("tokens", [1, 100, 128, 8193, 20_001])
def test_a_plan_counts_the_pages_that_the_engine_takes(name: str, tokens: int) -> None:
    """In bytes, of one sequence: the figures of `herd plan` and of `herd show` are both the engine's pages."""
    release = find(name)
    config = release.config()
    groups = cache_groups(architecture_of(config).caches(config), PAGE_TOKENS)
    wanted = groups.pages_for(tokens, STEP_TOKENS) * PAGE_TOKENS * cache_bytes_per_token(config) // groups.count
    planned = reckon(config, format_named("bf16", release, config), F16, Load(1, tokens, 1, 0)).cache
    assert planned == kept_cache_bytes(config, tokens, PAGE_TOKENS, STEP_TOKENS, F16) and sum(planned.values()) == wanted
    if tokens == 100:
        assert wanted == 128 * cache_bytes_per_token(config)


def test_a_plan_has_the_pages_and_steps_of_the_engine() -> None:
    assert base.PAGE_TOKENS == PAGE_TOKENS and base.BackendOptions().max_step_tokens == STEP_TOKENS


@pytest.mark.parametrize(
    ("name", "quant", "files"),
    [
        ("llama-3.1-405b-instruct", "fp8", 8 * 60_903_742_309),
        ("llama-3.1-405b-instruct", "bf16", 8 * 101_470_976_045),
        ("llama-4-maverick-instruct", "fp8", 8 * 54_121_549_657),
        ("llama-4-maverick-instruct", "bf16", 8 * 100_426_653_046),
    ],
)
def test_weights_are_as_large_as_metas_files(name: str, quant: str, files: int) -> None:
    """Of 8 shards each, which repeat small tensors."""
    release = find(name)
    config = release.config()
    assert weight_bytes(config, format_named(quant, release, config).chosen) == pytest.approx(files, rel=2e-3)


def test_sixteen_bits_are_two_bytes_a_parameter() -> None:
    for name in ("llama-4-scout", "llama-3.2-1b", "llama-3.2-11b-vision"):
        release = find(name)
        config = release.config()
        assert weight_bytes(config, format_named("bf16", release, config).chosen) == 2 * count_parameters(config)


@pytest.mark.parametrize(
    ("name", "sixteen", "eight", "four"),
    [("llama-4-scout", 218, 109, 61), ("llama-4-maverick", 800, 400, 225), ("llama-3.1-405b", 810, 405, 228), ("llama-3.1-8b", 16, 8, 4.5)],
)
def test_weights_at_16_8_and_four_and_a_half_bits_are_the_round_figures(name: str, sixteen: float, eight: float, four: float) -> None:
    """The block formats have a scale per 32 weights, so 8 bits are 8.5; the table rounds."""
    release = find(name)
    config = release.config()
    for quant, gigabytes in (("bf16", sixteen), ("q8_0", eight * 8.5 / 8), ("q4_0", four)):
        assert weight_bytes(config, format_named(quant, release, config).chosen) / 1e9 == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize("claim", [pytest.param(c, id=f"{c.release} {c.format}") for c in claims()])
def test_a_published_number_of_devices_is_reproduced(claim) -> None:
    release = find(claim.release)
    config = release.config()
    stored = format_named(claim.format, release, config)
    memory = reckon(config, stored, F16, Load(1, 8192, 1024, 256))
    assert claim.least <= smallest(config, memory, find_device(claim.device)).devices <= claim.most


def test_scout_at_8_or_16_bits_takes_two_to_four_devices() -> None:
    found = {}
    for quant in ("q8_0", "fp8", "bf16"):
        plan = answer(
            ask(
                find("llama-4-scout-instruct"),
                quant=quant,
                cache=F16,
                load=Load(1, 8192, 1024, 256),
                devices=[find_device("h100")],
                today=TODAY,
            )
        )
        found[quant] = plan.choices[0].fit.devices
    assert found == {"q8_0": 2, "fp8": 2, "bf16": 4}


def test_three_devices_cannot_share_eight_kv_heads() -> None:
    """Scout in 16 bits would fit on three; it says four, and how they share."""
    plan = answer(
        ask(find("llama-4-scout"), quant="bf16", cache=F16, load=Load(1, 8192, 1024, 256), devices=[find_device("h100")], today=TODAY)
    )
    assert plan.choices[0].fit.layout == Layout(4) and plan.choices[0].fit.why == "layers shared by 4"


class TestTenMillionTokensOfScout:
    """The figures of the page on users and prices, section C3."""

    release = find("llama-4-scout-instruct")
    config = release.config()
    tokens = config.context_length

    def test_all_layers_would_keep_two_terabytes_and_the_global_ones_keep_half_of_one(self) -> None:
        assert self.tokens == 10_485_760
        assert self.tokens * cache_bytes_per_token(self.config) == pytest.approx(2.06e12, rel=0.01)
        kinds = {kind.name: kind for kind in cache_kinds(self.config)}
        assert kinds["global layers"].num_layers == 12 and kinds["local layers"].reach == 8192
        assert kinds["global layers"].bytes_per_token == 49_152
        assert kinds["global layers"].num_bytes(self.tokens) == pytest.approx(515e9, rel=0.01)
        assert kinds["local layers"].num_bytes(self.tokens) == pytest.approx(1.2e9, rel=0.02)

    def test_narrow_caches_are_what_is_said(self) -> None:
        assert needed_cache_bytes(self.config, self.tokens, cache_format("q8_0")) == pytest.approx(258e9 * 8.5 / 8, rel=0.02)
        assert needed_cache_bytes(self.config, self.tokens, cache_format("q4_0")) == pytest.approx(145e9, rel=0.01)

    def test_24_gigabytes_hold_about_1_7_million_tokens(self) -> None:
        from herd.planner.memory import longest_context

        assert longest_context(self.config, 24e9, cache_format("q4_0")) == pytest.approx(1.7e6, rel=0.03)

    def test_operations_and_hours_of_the_prompt(self) -> None:
        """9 to 10 hours at 400 TFLOPS; the table of embeddings multiplies nothing, so the linear part is a little less than it says."""
        work = Work(self.config, format_named("bf16", self.release, self.config), F16)
        assert 2 * work.matrices * self.tokens == pytest.approx(3.6e17, rel=0.07)
        assert work.attention_operations(self.tokens) == pytest.approx(1.35e19, rel=0.01)
        seconds = prompt_seconds(work, find_device("h100"), Layout(), self.tokens)
        assert seconds is not None and 9 < seconds * 989 / 400 / 3600 < 10

    def test_a_token_reads_the_whole_cache(self) -> None:
        """At the bandwidth of one H100 that is 0.15 s; eight share it and talk for a millisecond."""
        work = Work(self.config, format_named("int4", self.release, self.config), F16)
        assert work.cache_read_bytes(self.tokens) == pytest.approx(516.6e9, rel=1e-3)
        one, eight = (decode_step(work, find_device("h100"), Layout(count), 1, self.tokens).seconds for count in (1, 8))
        assert one == pytest.approx(0.157, rel=0.02)
        assert eight == pytest.approx(one / 8 + 0.001, rel=0.02)


def test_behemoth_says_what_is_known_and_what_is_not() -> None:
    said = said_of(find("llama-4-behemoth"))
    assert "active parameters: 288 billion" in said["announced"]
    assert any("4.0 TB at 16 bits" in line for line in said["follows"])
    assert any("layers" in line for line in said["not known"])
