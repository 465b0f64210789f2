"""What models run on: `data/hardware.toml`, one entry per device, each value with its source; and devices that a user describes."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import field, replace
from functools import cache
from typing import Any

from herd.errors import FileProblem, UsageError, did_you_mean
from herd.planner import units
from herd.planner.reading import Source, filled, only, quantity, read_file, read_sources, source_named
from herd.records import dataclass

PEAKS = ("bf16", "fp8", "int8", "fp32")
KINDS = ("gpu", "apple", "cpu")
_KEYS = ("title", "kind", "also", "memory", "bandwidth", *PEAKS, "power", "link", "most", "note", "sources", "prices")
_SOURCED = ("memory", "bandwidth", *PEAKS, "power", "link")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars for one device and hour, on demand, and who asks it: one offer (`low` is `high`), or the range that a survey saw."""

    seller: str
    low: float
    high: float
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. Sizes in bytes, rates per second; what is not known is None.

    kind       gpu, apple (processor and graphics share the memory) or cpu
    memory     None where it is whatever was built in
    bandwidth  of its memory
    peaks      dense multiply-add operations (two each), by number format: bf16, fp8, int8, fp32
    link       between devices of one machine, both directions together
    most       devices in one machine
    products   operations per second that products with weights reach, by the format of the weights, where that was measured
    attention  the same of queries with keys and of what they read
    """

    name: str
    title: str
    kind: str
    bandwidth: float
    peaks: Mapping[str, float]
    memory: int | None = None
    power: float | None = None
    link: float | None = None
    most: int = 1
    also: tuple[str, ...] = ()
    note: str = ""
    prices: tuple[Price, ...] = ()
    products: Mapping[str, float] = field(default_factory=dict)
    attention: float | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)

    def price_range(self) -> tuple[float, float] | None:
        """The lowest and highest known dollars per hour."""
        return (min(p.low for p in self.prices), max(p.high for p in self.prices)) if self.prices else None

    def peak(self, *wanted: str) -> tuple[str, float] | None:
        """The first of these number formats that the device has a known peak for."""
        return next(((name, self.peaks[name]) for name in wanted if name in self.peaks), None)


@cache
def devices() -> Mapping[str, Device]:
    """All known devices by name, in the order of the file."""
    return read_devices(read_file("hardware.toml"))


def find_device(name: str) -> Device:
    """The device of this name or nickname. `UsageError` says what is known, and how to describe another."""
    wanted = name.strip().lower().replace(" ", "-").replace("_", "-")
    names = {nick: device for device in devices().values() for nick in (device.name, *device.also)}
    if wanted in names:
        return names[wanted]
    raise UsageError(
        f"No device is known as {name!r:.60}{did_you_mean(wanted, names)} Known: {', '.join(devices())}. Describe another one with "
        "--device-memory 24GiB --bandwidth 1TB/s --compute 165TFLOPS."
    )


def described(memory: str, bandwidth: str, compute: str, *, power: str | None = None, price: str | None = None) -> Device:
    """A device that is in no file, by what the sums need: memory, bandwidth and dense 16-bit operations per second."""
    device = Device(
        name="described",
        title="the device described",
        kind="gpu",
        bandwidth=_positive(units.bytes_per_s(bandwidth, "--bandwidth"), "--bandwidth"),
        peaks={"bf16": _positive(units.operations_per_s(compute, "--compute"), "--compute")},
        most=8,
        sources={"bandwidth": _given(), "bf16": _given()},
    )
    return changed(device, memory=memory, power=power, price=price)


def changed(device: Device, *, memory: str | None = None, power: str | None = None, price: str | None = None) -> Device:
    """The device with what is given in the place of what is known of it."""
    changes: dict[str, Any] = {}
    if memory is not None:
        changes["memory"] = _positive(units.num_bytes(memory, "--device-memory"), "--device-memory")
    if power is not None:
        changes["power"] = units.watts(power, "--power")
    sources = {**device.sources, **dict.fromkeys(changes, _given())}
    if price is not None:
        dollars = units.dollars(price, "--price")
        changes["prices"] = (Price(seller="as given", low=dollars, high=dollars, source=_given()),)
    return replace(device, **changes, sources=sources)


def _given() -> Source:
    return Source("given", "as given", datetime.date.today())


def _positive(value: Any, what: str) -> Any:
    if value <= 0:
        raise UsageError(f"{what} must be more than nothing.")
    return value


def read_devices(tables: Mapping[str, Any]) -> dict[str, Device]:
    """Devices from the tables of a file. `FileProblem` names the entry and the key."""
    only(tables, ("sources", "devices"), "hardware")
    sources = read_sources(tables, "hardware")
    found = {name: _device(name, entry, sources) for name, entry in tables.get("devices", {}).items()}
    nicknames = [nick for device in found.values() for nick in (device.name, *device.also)]
    twice = next((nick for nick in nicknames if nicknames.count(nick) > 1), None)
    if twice is not None:
        raise FileProblem(f"hardware: two devices are called {twice!r}.")
    return found


def _device(name: str, entry: Mapping[str, Any], sources: Mapping[str, Source]) -> Device:
    at = f"hardware: devices.{name}"
    only(entry, _KEYS, at)
    named = entry.get("sources", {})
    only(named, _SOURCED, f"{at}.sources")
    for key in _SOURCED:
        if (key in entry) != (key in named):
            raise FileProblem(f"{at}.{key} {'has no source' if key in entry else 'has a source and no value'}.")
    peaks = {key: quantity(units.operations_per_s, entry[key], f"{at}.{key}") for key in PEAKS if key in entry}
    values: dict[str, Any] = {key: entry[key] for key in ("title", "kind", "most", "note") if key in entry}
    for key, read in (("memory", units.num_bytes), ("bandwidth", units.bytes_per_s), ("power", units.watts), ("link", units.bytes_per_s)):
        if key in entry:
            values[key] = quantity(read, entry[key], f"{at}.{key}")
    values["prices"] = tuple(_price(price, sources, f"{at}.prices") for price in entry.get("prices", ()))
    values["sources"] = {key: source_named(sources, value, f"{at}.{key}") for key, value in named.items()}
    device = filled(Device, {"name": name, "also": tuple(entry.get("also", ())), "peaks": peaks, **values}, at)
    if device.kind not in KINDS:
        raise FileProblem(f"{at}.kind is {device.kind!r}; expected one of {', '.join(KINDS)}.")
    return device


def _price(entry: Mapping[str, Any], sources: Mapping[str, Source], at: str) -> Price:
    only(entry, ("seller", "dollars", "low", "high", "source"), at)
    low, high = entry.get("low", entry.get("dollars")), entry.get("high", entry.get("dollars"))
    source = source_named(sources, entry.get("source"), at)
    return filled(Price, {"seller": entry.get("seller", source.title), "low": low, "high": high, "source": source}, at)
