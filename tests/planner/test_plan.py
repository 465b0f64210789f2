"""A plan: formats, memory, fit, speed and cost, and what is refused with an explanation."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest

from herd.dtypes import F16, F32
from herd.errors import UsageError
from herd.family.catalogue import find
from herd.models.sizes import distinct_experts, weight_bytes, weight_parts
from herd.planner.charts import Bar, bars_chart
from herd.planner.cost import HOURS_PER_MONTH
from herd.planner.devices import described, devices, find_device
from herd.planner.fit import layouts, smallest
from herd.planner.formats import format_named, names
from herd.planner.memory import Load, cache_format, longest_context, reckon
from herd.planner.page import page
from herd.planner.pictures import largest_picture
from herd.planner.plan import Plan, answer, ask
from herd.planner.report import plan_data
from herd.planner.speed import PEAK, Layout, Shares, Work, decode_step, link_seconds, predict, prompt_seconds

TODAY = datetime.date(2026, 11, 21)
ONE = Load(1, 4096, 1024, 256)


def planned(name: str, quant: str = "bf16", load: Load = ONE, device_names: tuple[str, ...] = ("h100",), **more: Any) -> Plan:
    chosen = [find_device(each) for each in device_names]
    return answer(ask(find(name), quant=quant, cache=F16, load=load, devices=chosen, today=TODAY, **more))


def work_of(name: str, quant: str = "bf16") -> Work:
    release = find(name)
    config = release.config()
    return Work(config, format_named(quant, release, config), F16)


@pytest.mark.parametrize("name", names())
def test_every_format_is_known_and_parts_add_up(name: str) -> None:
    release = find("llama-4-scout" if name in ("int4",) else "llama-3.1-8b")
    config = release.config()
    stored = format_named(name, release, config)
    assert sum(weight_parts(config, stored.chosen).values()) == weight_bytes(config, stored.chosen)
    assert stored.name == name and stored.note


@pytest.mark.parametrize(
    ("said", "meant"), [("q4", "q4_0"), ("4bit", "q4_0"), ("FP16", "f16"), ("8-bit", "q8_0"), ("Q4_K_M", "q4_k_m"), ("float8", "fp8")]
)
def test_common_spellings_are_understood(said: str, meant: str) -> None:
    release = find("llama-3.1-8b")
    assert format_named(said, release, release.config()).name == meant


def test_q4_k_m_of_the_8b_is_as_large_as_the_files_that_people_have() -> None:
    """llama.cpp's own table of sizes says 4.58 GiB."""
    release = find("llama-3.1-8b")
    config = release.config()
    assert weight_bytes(config, format_named("q4_k_m", release, config).chosen) / 2**30 == pytest.approx(4.58, abs=0.01)


@pytest.mark.parametrize(
    ("model", "quant", "says"),
    [
        ("smollm2-135m", "q4_k", "256 weights a block.*rows of embed have 576.*q4_0 fits"),
        ("llama-3.1-8b", "int4", "models with experts"),
        ("llama-3.1-8b", "q7_0", "did you mean"),
    ],
)
def test_a_format_that_cannot_be_is_explained(model: str, quant: str, says: str) -> None:
    release = find(model)
    with pytest.raises(UsageError, match=says):
        format_named(quant, release, release.config())


@pytest.mark.parametrize(
    ("model", "load", "says"),
    [
        ("llama-3.1-8b", Load(1, 200_000, 1024, 256), "made for up to 131,072 tokens"),
        ("llama-3.1-8b", Load(0, 4096, 1024, 256), "--users is 0"),
        ("llama-3.1-8b", Load(1, 1024, 1024, 256), "do not fit into a context of 1,024"),
        ("llama-3.1-8b", Load(1, 4096, 0, 256), "at least 1"),
        ("llama-3.1-8b", Load(1, 4096, 1024, 256, 2), "takes text only"),
        ("prompt-guard-86m", ONE, "writes none"),
        ("llama-4-behemoth", ONE, "is not known"),
    ],
)
def test_an_impossible_load_is_explained(model: str, load: Load, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        planned(model, load=load)


def test_caches_are_named_as_people_do_and_others_refused() -> None:
    assert cache_format("int8").name == "q8_0" and cache_format("FP16") is F16
    with pytest.raises(UsageError, match="--cache is 'q5_0'"):
        cache_format("q5_0")


def test_memory_of_users_is_one_whole_context_and_the_others_conversations() -> None:
    config = find("llama-3.1-8b").config()
    stored = format_named("bf16", find("llama-3.1-8b"), config)
    memory = reckon(config, stored, F16, Load(10, 8192, 1024, 256))
    assert memory.cache == {"global layers": 131_072 * (8192 + 9 * 1280)}
    assert memory.total == memory.weight_bytes + memory.cache_bytes + memory.buffers + memory.runtime


def test_local_layers_are_counted_trimmed_or_whole() -> None:
    load = Load(1, 100_000, 1024, 256)
    trimmed, whole = (planned("llama-4-scout", "q4", load, whole=each).memory for each in (False, True))
    assert trimmed.cache["local layers"] == 147_456 * (8192 + 64 * 9), "a chunk, and blocks for a step of 512 tokens"
    assert whole.cache_bytes == 196_608 * 100_032 > trimmed.cache_bytes
    notes = planned("llama-4-scout", "q4", load).notes
    assert any("--keep-all" in note for note in notes)


def test_pictures_take_memory_only_where_they_are_shown() -> None:
    without, shown = (planned("llama-4-scout", "q4", dataclasses.replace(ONE, pictures=each)).memory for each in (0, 2))
    assert without.pictures == 0 < shown.pictures
    for name, tokens in (("llama-4-scout", 17 * 144), ("llama-3.2-11b-vision", 1)):
        found = largest_picture(find(name).config())
        assert found is not None and found.tokens == tokens and found.encoding_bytes > 2e8 > found.rows > 0 < found.kept_bytes
    assert largest_picture(find("llama-3.1-8b").config()) is None


def test_the_longest_context_that_fits_is_found() -> None:
    config = find("llama-3.1-8b").config()
    assert longest_context(config, 131_072 * 5000 + 7, F16) == 5000
    assert longest_context(config, 1e15, F16) == 131_072 and longest_context(config, 0, F16) == 0


def test_devices_share_layers_where_heads_divide() -> None:
    config = find("llama-3.2-3b").config()
    assert [str(each) for each in layouts(config, find_device("rtx-4090"))][:3] == [
        "one device",
        "layers shared by 2",
        "layers shared by 4",
    ]
    shared = list(layouts(find("llama-2-7b").config(), find_device("h100")))
    assert [each.tensor for each in shared[:4]] == [1, 2, 4, 8] and all(each.copies == 1 for each in shared)


def test_more_devices_than_kv_heads_keep_copies() -> None:
    glimmer = find("muse-glimmer-30b").config()
    assert {each.tensor: each.copies for each in layouts(glimmer, find_device("h100")) if each.stages == 1} == {1: 1, 2: 1, 4: 2, 8: 4}


def test_what_fits_nowhere_says_so() -> None:
    config = find("llama-3.1-405b").config()
    memory = reckon(config, format_named("f32", find("llama-3.1-405b"), config), F32, ONE, kind="apple")
    found = smallest(config, memory, find_device("m4-pro"))
    assert found.layout is None and "usable" in found.why
    assert "--device-memory" in smallest(config, memory, find_device("epyc")).why


def test_a_lonely_token_of_a_dense_model_reads_every_weight_once() -> None:
    work = work_of("llama-3.1-8b")
    table = 2 * 128_256 * 4096
    assert work.read_bytes(1) == pytest.approx(2 * 8_030_261_248 - table + table / 128_256)
    assert work.matrices == pytest.approx(8_030_261_248 - 128_256 * 4096, rel=1e-6)
    step = decode_step(work, find_device("h100"), Layout(), 1, 1000)
    assert step.waits_for == "memory" and step.seconds == pytest.approx((work.read_bytes(1) + 131_072_000) / 3.35e12)


def test_a_tied_head_is_read_whole() -> None:
    work = work_of("llama-3.2-1b")
    assert work.read_bytes(1) == 2 * 1_235_814_400 and work.head == 128_256 * 2048


def test_active_weights_of_experts_are_the_published_ones() -> None:
    for name, active in (("llama-4-scout", 16_138_408_960), ("llama-4-maverick", 17_184_691_200 - 202_048 * 5120)):
        assert work_of(name).matrices == pytest.approx(active, rel=1e-4)


def test_a_batch_meets_more_experts_and_in_the_end_all() -> None:
    assert distinct_experts(16, 1, 1) == pytest.approx(1) and distinct_experts(128, 1, 10_000) == pytest.approx(128)
    assert distinct_experts(16, 1, 16) == pytest.approx(16 * (1 - (15 / 16) ** 16))
    work = work_of("llama-4-scout")
    sizes = [work.read_bytes(count) for count in (1, 2, 8, 64, 4096)]
    assert sizes == sorted(sizes) and sizes[0] < 36e9 and sizes[-1] == pytest.approx(215.5e9, rel=0.02)


def test_chunks_and_windows_see_less_than_everything() -> None:
    scout, glimmer, dense = work_of("llama-4-scout"), work_of("muse-glimmer-30b"), work_of("llama-3.1-8b")
    heads = 4 * 40 * 128
    tokens = 81_920
    assert scout.attention_operations(tokens) == pytest.approx(heads * (12 * tokens**2 / 2 + 36 * 10 * 8192**2 / 2))
    assert glimmer.attention_operations(4096) == pytest.approx(4 * 32 * 128 * (13 * 4096**2 / 2 + 39 * (2048**2 / 2 + 2048 * 2048)))
    assert dense.attention_operations(100) == pytest.approx(4 * 32 * 128 * 32 * 5000)


def test_prompts_are_bound_by_operations_and_short_ones_by_memory() -> None:
    work, device = work_of("llama-3.1-8b"), find_device("h100")
    long = prompt_seconds(work, device, Layout(), 8192)
    products = 2 * ((work.matrices - work.head) * 8192 + work.head)
    assert long == pytest.approx((products + work.attention_operations(8192)) / 989e12)
    assert prompt_seconds(work, device, Layout(), 1) == pytest.approx(work.read_bytes(1) / 3.35e12)
    assert prompt_seconds(work, find_device("m4-max"), Layout(), 100) is None


def test_devices_that_share_talk_and_those_in_stages_do_not() -> None:
    work, device = work_of("llama-3.1-70b"), find_device("h100")
    assert link_seconds(work, device, 1, 1) == 0
    assert link_seconds(work, device, 8, 1) > 2 * 80 * 10e-6
    alone = predict(work, device, Layout(8, 2), Load(1, 8192, 1024, 256), PEAK)
    many = predict(work, device, Layout(8, 2), Load(64, 8192, 1024, 256), PEAK)
    assert many.together > 20 * alone.together and alone.together == pytest.approx(alone.alone)


def test_float8_runs_at_its_peak_only_where_weights_are_float8() -> None:
    device = find_device("h100")
    work = work_of("llama-3.1-405b", "fp8")
    share = 335.07e9 / 405e9
    assert work.peak(device) == pytest.approx(1 / (share / 1979e12 + (1 - share) / 989e12), rel=0.03)
    assert work_of("llama-3.1-8b", "q8_0").peak(device) == 989e12
    assert work_of("llama-3.1-8b", "q8_0").peak(find_device("cpu-two-cores")) == 1896e9


def test_expected_figures_are_below_their_bounds() -> None:
    for choice in planned("llama-4-scout", "q4", Load(32, 8192, 1024, 256), tuple(devices())).choices:
        if choice.bound is not None and choice.expected is not None:
            assert choice.expected.alone < choice.bound.alone and choice.expected.together < choice.bound.together
            assert choice.expected.with_prompts is None or choice.expected.with_prompts <= choice.expected.together


def test_a_described_device_is_planned_for() -> None:
    device = described("24GiB", "1TB/s", "165TFLOPS", power="450W", price="$0.40")
    plan = answer(ask(find("llama-3.1-8b"), quant="q4", cache=F16, load=ONE, devices=[device], today=TODAY, dollars_per_kwh=0.25))
    assert plan.best is not None and plan.best.cost is not None and plan.best.cost.per_hour is not None
    cost = plan.best.cost
    assert cost.per_hour.low == 0.4 and cost.watts == 450
    assert cost.power_dollars_per_million == pytest.approx(cost.kwh_per_million * 0.25)


def test_the_break_even_is_where_a_months_rent_is_a_services_bill() -> None:
    plan = planned("llama-3.3-70b-instruct", "fp8", Load(64, 8192, 1024, 256))
    cost = plan.choices[0].cost
    assert cost is not None and cost.break_even is not None and cost.per_hour is not None
    current = [each.per_million for each in cost.hosted if not each.is_over]
    assert cost.break_even.low * max(current) / 1e6 == pytest.approx(cost.per_hour.low * HOURS_PER_MONTH)
    assert cost.break_even.high * min(current) / 1e6 == pytest.approx(cost.per_hour.high * HOURS_PER_MONTH)
    assert not any(each.is_over for each in cost.hosted[: len(current)])


def test_offers_that_ended_do_not_set_the_break_even_and_are_warned_about() -> None:
    plan = planned("llama-3.1-405b-instruct", "fp8")
    assert any(line.startswith("No longer offered by") and "Bedrock (since 2026-07-07)" in line for line in plan.warnings)


def test_services_that_take_no_such_conversation_are_left_out_and_named() -> None:
    long = planned("llama-4-scout-instruct", "q4", Load(1, 10_000_000, 5_000_000, 1000))
    assert long.choices[0].cost is not None and not long.choices[0].cost.hosted
    assert any("take no conversations of 5,001,000 tokens: Azure, Bedrock" in note for note in long.notes)
    middle = planned("llama-4-scout-instruct", "q4", Load(1, 400_000, 300_000, 1000)).choices[0].cost
    assert middle is not None and "Fireworks" not in {each.offer.service for each in middle.hosted}


def test_old_prices_are_warned_about_and_fresh_ones_are_not() -> None:
    fresh = planned("llama-4-scout", "q4")
    assert any("mercatus" in line and "204 days old" in line for line in fresh.warnings)
    (unchecked,) = (line for line in fresh.warnings if "litellm" in line)
    assert "not checked" in unchecked and "days old" not in unchecked and "https://github.com/BerriAI/litellm" in unchecked
    later = answer(dataclasses.replace(fresh.question, today=datetime.date(2027, 3, 1)))
    assert any("litellm" in line and "100 days old" in line for line in later.warnings)


def test_the_best_choice_is_the_cheapest_for_a_million_tokens() -> None:
    plan = planned("llama-3.1-8b", "q4", device_names=("h100", "a100", "rtx-4090"))
    assert plan.best is not None and plan.best.fit.device.name == "a100-80gb"
    assert planned("llama-3.1-8b", "q4", device_names=("rtx-4090",)).best is not None


def test_changes_name_what_else_could_be_and_what_could_not() -> None:
    plan = planned("smollm2-135m-instruct", "q8_0", Load(4, 2048, 256, 128))
    told = {change.what: change for change in plan.changes}
    assert {"stored as bf16", "stored as q4_0", "8,192 tokens of context", "16 users at once", "1 user at once"} <= set(told)
    assert told["stored as q4_0"].total < told["stored as bf16"].total


def test_published_claims_stand_beside_the_plan() -> None:
    plan = planned("llama-4-scout", "int4")
    assert [(claim.device, claim.least) for claim in plan.claims] == [("h100-sxm", 1)]


def test_shares_of_the_peaks_can_be_measured_ones() -> None:
    whole, half = (planned("llama-3.1-8b", shares=each).choices[0].expected for each in (Shares(1.0, 1.0), Shares(0.5, 0.5)))
    assert whole is not None and half is not None and whole.alone == pytest.approx(2 * half.alone)


def test_a_plan_as_data_says_everything_and_its_sources() -> None:
    data = plan_data(planned("llama-4-scout", "q4", Load(200, 131_072, 1024, 256), tuple(devices())))
    assert data["memory"]["weights"]["experts"] == 48 * 16 * 3 * 5120 * 8192 * 18 // 32
    assert len(data["devices"]) == len(devices()) and all(each["sources"] for each in data["devices"])
    assert set(data["assumed"]) == {"memory", "speed", "cost"} and data["warnings"]


def test_the_page_needs_nothing_else_and_shows_charts() -> None:
    text = page(planned("llama-4-scout", "q4", Load(20, 131_072, 1024, 256), tuple(devices())))
    assert text.count("<svg") == 4 and "<script" not in text and "NaN" not in text
    assert not any(f'{attribute}="' in text for attribute in ("src", "href")), "addresses of sources are text"
    assert "mercatus-ai.com" in text and "Assumed" in text
    refused = page(planned("llama-3.1-405b", "f32", device_names=("m4-pro",)))
    assert "usable" in refused and refused.count("<svg") == 1


def test_charts_escape_what_they_are_told() -> None:
    assert "<b>" not in bars_chart("<b>", [Bar("<b>", 1.0, "<b>")])
