"""Quantities as people write them, and as they are shown to people."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.errors import UsageError
from herd.planner import units


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.count, "200", 200),
        (units.count, "10M", 10_000_000),
        (units.count, "10m", 10_000_000),
        (units.count, "128k", 128_000),
        (units.count, "128Ki", 131_072),
        (units.count, "1.5e6", 1_500_000),
        (units.count, "1,000,000", 1_000_000),
        (units.count, "1_000_000", 1_000_000),
        (units.count, "15.6T", 15_600_000_000_000),
        (units.count, "8B", 8_000_000_000),
        (units.num_bytes, "24GiB", 24 * 2**30),
        (units.num_bytes, "80 GB", 80_000_000_000),
        (units.num_bytes, "24gb", 24_000_000_000),
        (units.num_bytes, "512MB", 512_000_000),
        (units.num_bytes, "1024", 1024),
        (units.bytes_per_s, "3.35TB/s", 3.35e12),
        (units.bytes_per_s, "900 GB/s", 9e11),
        (units.operations_per_s, "989TFLOPS", 9.89e14),
        (units.operations_per_s, "989 TF", 9.89e14),
        (units.operations_per_s, "1.98 PFLOP/s", 1.98e15),
        (units.operations_per_s, "660 TOPS", 6.6e14),
        (units.watts, "700W", 700.0),
        (units.watts, "1.2 kW", 1200.0),
        (units.dollars, "$2.40", 2.4),
        (units.dollars, "2.40/h", 2.4),
        (units.dollars, "$0.25/kWh", 0.25),
    ],
)
def test_a_quantity_is_read_as_it_is_written(read: Callable[[str, str], float], text: str, value: float) -> None:
    assert read(text, "--x") == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (units.count, "many", "write a number"),
        (units.count, "1.5", "whole number"),
        (units.count, "-3", "write a number"),
        (units.count, "1,5", "write a number"),
        (units.count, "10 GB", "no unit of it"),
        (units.count, "1e99", "more than there is"),
        (units.count, "", "write a number"),
        (units.num_bytes, "24Gb", "bits"),
        (units.num_bytes, "24 parsecs", "24GiB or 80GB"),
        (units.bytes_per_s, "90", "3.35TB/s or 90GB/s"),
        (units.bytes_per_s, "90Gb/s", "bits"),
        (units.operations_per_s, "989", "989TFLOPS"),
        (units.watts, "700", "700W"),
        (units.dollars, "2 EUR", "US dollars"),
    ],
)
def test_what_is_no_quantity_is_refused_with_an_example(read: Callable[[str, str], float], text: str, says: str) -> None:
    with pytest.raises(UsageError, match="--x is") as refused:
        read(text, "--x")
    assert says in str(refused.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    for read in (units.count, units.num_bytes, units.bytes_per_s, units.operations_per_s, units.watts, units.dollars):
        try:
            assert read(text, "--x") >= 0
        except UsageError as error:
            assert "--x" in str(error)


@given(st.integers(0, 10**15))
def test_a_plain_number_is_itself(value: int) -> None:
    assert units.count(str(value), "--x") == value == units.num_bytes(str(value), "--x")


def test_figures_are_shown_for_people() -> None:
    assert units.size(61.1e9) == "61.1 GB" and units.size(999) == "999 B" and units.size(2.06e12) == "2.1 TB"
    assert units.seconds(0.0853) == "85.3 ms" and units.seconds(36000) == "10 h" and units.seconds(12 * 86400) == "12 days"
    assert units.money(0.054) == "$0.054" and units.money(2.4) == "$2.40" and units.money(12345) == "$12,345"
    assert units.people(1.62e9) == "1.62 billion" and units.people(12) == "12"
