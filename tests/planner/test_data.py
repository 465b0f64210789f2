"""The data files: every value has a source and a date, and a slip in them is refused by name."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from herd.errors import FileProblem, UsageError
from herd.family.catalogue import find, known
from herd.planner.devices import described, devices, find_device, read_devices
from herd.planner.licence_data import read_licences
from herd.planner.published import claims, read_claims
from herd.planner.reading import read_text
from herd.planner.services import offers, offers_of, read_offers

HARDWARE = """
[sources]
sheet = { title = "a sheet", date = 2026-01-02 }
[devices.x]
title = "X"
kind = "gpu"
memory = "8 GB"
bandwidth = "1 TB/s"
sources = { memory = "sheet", bandwidth = "sheet" }
"""
SERVICES = """
[sources]
list = { title = "a list", date = 2026-01-02 }
[[offers]]
service = "S"
release = "llama-3.1-8b-instruct"
reading = 0.1
writing = 0.2
source = "list"
"""
CLAIMS = (
    '[sources]\ns = { title = "t" }\n[[claims]]\nrelease = "r"\nformat = "f"\ndevice = "d"\nleast = 1\nmost = 2\nsource = "s"\nwhy = "w"\n'
)


def test_every_value_of_every_device_has_a_source() -> None:
    for device in devices().values():
        values = {"bandwidth", *device.peaks, *(name for name in ("memory", "power", "link") if getattr(device, name) is not None)}
        assert values == set(device.sources), device.name
        assert all(price.source.title for price in device.prices)
        assert device.bandwidth > 1e9 and all(peak > 1e10 for peak in device.peaks.values())


def test_the_devices_that_people_ask_for_are_there() -> None:
    wanted = [
        "h100",
        "h100-pcie",
        "h200",
        "a100-40gb",
        "a100-80gb",
        "l40s",
        "l4",
        "4090",
        "3090",
        "5090",
        "mi300x",
        "m4-max",
        "m3-ultra",
        "epyc",
        "desktop",
        "laptop",
    ]
    for name in wanted:
        assert find_device(name).bandwidth
    assert find_device("RTX 4090") is find_device("rtx-4090")


def test_prices_are_in_order_and_offers_are_of_known_releases_with_dates() -> None:
    for device in devices().values():
        assert all(0 < price.low <= price.high < 20 for price in device.prices)
    for offer in offers():
        assert known(offer.release) is not None, offer.release
        assert 0 < offer.reading < 20 and 0 < offer.writing < 20 and offer.source.date == datetime.date(2026, 11, 21)


def test_offers_of_a_base_model_are_those_of_its_instruct_model_and_not_of_a_guard() -> None:
    assert {offer.release for offer in offers_of(find("llama-4-scout"))} == {"llama-4-scout-instruct"}
    assert offers_of(find("llama-2-7b")) == []


def test_an_unknown_device_is_refused_with_the_near_one_and_the_way_to_describe_another() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'h100'.*--device-memory 24GiB"):
        find_device("h10O")


def test_a_device_is_described_by_three_quantities() -> None:
    device = described("24GiB", "1TB/s", "165TFLOPS", power="450W", price="$0.40")
    assert (device.memory, device.bandwidth, device.peaks["bf16"], device.power) == (24 * 2**30, 1e12, 1.65e14, 450.0)
    assert device.price_range() == (0.4, 0.4)
    with pytest.raises(UsageError, match="more than nothing"):
        described("0GB", "1TB/s", "165TFLOPS")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('kind = "gpu"', 'kind = "toaster"', "x.kind is 'toaster'"),
        ('title = "X"', 'titel = "X"', "unknown key 'titel'; did you mean 'title'"),
        ('title = "X"', "", "lacks title"),
        ('title = "X"', "title = 7", "title is 7; expected str"),
        ('memory = "8 GB"', "memory = 8", "memory is 8; expected a quantity"),
        ('memory = "8 GB"', 'memory = "8 things"', "memory is '8 things'"),
        ('memory = "8 GB"', "", "memory has a source and no value"),
        ('memory = "sheet", ', "", "memory has no source"),
        ('memory = "sheet"', 'memory = "shet"', "the source 'shet'"),
        ("[sources]", "[source]", "unknown key 'source'"),
        ('kind = "gpu"', 'kind = "gpu"\nprices = [{ low = 1.0, source = "sheet" }]', "high is None"),
        ("[sources]", "[sources", "not valid TOML"),
    ],
)
def test_a_slip_in_the_hardware_is_named(before: str, after: str, says: str) -> None:
    assert before in HARDWARE
    with pytest.raises(FileProblem, match=says.replace("(", r"\(")):
        read_devices(read_text(HARDWARE.replace(before, after, 1), "hardware"))


def test_two_devices_of_one_name_are_refused() -> None:
    twice = HARDWARE + HARDWARE.partition("[devices.x]")[2].join(["[devices.y]", ""]) + 'also = ["x"]\n'
    with pytest.raises(FileProblem, match="two devices are called 'x'"):
        read_devices(read_text(twice, "hardware"))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("reading = 0.1", "reading = 1", "reading is 1; expected float"),
        ("reading = 0.1", "", "lacks reading"),
        ('source = "list"', "", "the source None"),
        (", date = 2026-01-02", "", "has no date, and prices change"),
        ("writing = 0.2", "writting = 0.2", "did you mean 'writing'"),
    ],
)
def test_a_slip_in_the_services_is_named(before: str, after: str, says: str) -> None:
    with pytest.raises(FileProblem, match=says):
        read_offers(read_text(SERVICES.replace(before, after, 1), "services"))


@pytest.mark.parametrize(
    ("before", "after", "says"), [("least = 1", "", "lacks least"), ('source = "s"', 'source = "q"', "the source 'q'")]
)
def test_a_slip_in_the_published_claims_is_named(before: str, after: str, says: str) -> None:
    assert len(read_claims(read_text(CLAIMS, "published"))) == 1
    with pytest.raises(FileProblem, match=says):
        read_claims(read_text(CLAIMS.replace(before, after, 1), "published"))


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"licences": {"x": {"title": "X", "kind": "odd", "source": "s"}}}, "kind is 'odd'"),
        ({"licences": {"x": {"title": "X", "kind": "apache", "source": "t"}}}, "the source 't'"),
        ({"licences": {"x": {"kind": "apache", "source": "s"}}}, "lacks title"),
        ({"releases": {"a": ["no-such-doubt"]}}, "not described"),
    ],
)
def test_a_slip_in_the_licences_is_named(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(FileProblem, match=says):
        read_licences({"sources": {"s": {"title": "S"}}, **tables})


def test_every_claim_is_of_a_known_release_and_device() -> None:
    assert claims()
    for claim in claims():
        assert known(claim.release) is not None and find_device(claim.device) and claim.least <= claim.most and claim.why
