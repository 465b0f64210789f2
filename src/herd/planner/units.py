"""Quantities as people write them: 10M, 128k, 24GiB, 3.35TB/s, 989 TFLOPS, $2.40, 700 W.

Without a further letter, k, M, G, T and P are powers of 1000; Ki, Mi, Gi and Ti are powers of 1024. Capital letters may be small
where nothing else is meant by them (24gb, 10m), except for Gb and the like, which are bits and are refused.
"""

from __future__ import annotations

import math
import re

from herd.errors import UsageError

_SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12, "p": 10**15, "e": 10**18} | {
    f"{letter}i": 1024**power for power, letter in enumerate("kmgt", start=1)
}
_WHOLE = r"(?:[0-9]{1,3}(?:[,' ][0-9]{3})+|[0-9][0-9_]*)"
_NUMBER = re.compile(rf"(?P<number>{_WHOLE}(?:\.[0-9]+)?(?:e[+-]?[0-9]{{1,3}})?|\.[0-9]+)\s*(?P<unit>[a-z/ ]*)", re.IGNORECASE)
_MOST = 1e30
_BITS = re.compile(r"[KMGTP]i?b(?:/s|ps)?")


def count(text: str, what: str) -> int:
    """A number of things: 200, 10M, 1.5e6, 1_000_000, 128k (128,000), 128Ki (131,072), 8B (billions). `UsageError` names `what`."""
    number, unit = _parts(text, what, "a number such as 200, 128k or 10M")
    scale = _SCALES.get(unit.lower())
    if scale is None:
        raise UsageError(f"{what} is {text!r:.60}; {unit!r:.20} is no unit of it. Write a number such as 200, 128k, 128Ki or 10M.")
    value = number * scale
    if value != int(value):
        raise UsageError(f"{what} is {text!r:.60}; it must be a whole number.")
    return int(value)


def num_bytes(text: str, what: str) -> int:
    """Bytes: 24GiB, 80 GB, 512MB, 1.5 TB, or a plain number of bytes."""
    return int(_scaled(text, what, ("", "b", "byte", "bytes"), "24GiB or 80GB"))


def bytes_per_s(text: str, what: str) -> float:
    """Bytes per second: 3.35TB/s, 900 GB/s, 46.3GB/s."""
    return _scaled(text, what, ("b/s", "bps", "byte/s", "bytes/s"), "3.35TB/s or 90GB/s")


def operations_per_s(text: str, what: str) -> float:
    """Operations per second, a multiply and an add counting as two: 989TFLOPS, 989 TF, 1.98 PFLOP/s, 660 TOPS, 93 GOPS."""
    return _scaled(text, what, ("f", "flop", "flops", "flop/s", "flops/s", "op", "ops", "op/s", "ops/s"), "989TFLOPS or 1.9TOPS")


def watts(text: str, what: str) -> float:
    """Electrical power: 700W, 1.2 kW."""
    return _scaled(text, what, ("w",), "700W")


def dollars(text: str, what: str) -> float:
    """US dollars: 2.40, $2.40, $2.40/h."""
    bare = re.sub(r"\s*(/\s*(h|hour|kwh)|per hour)$", "", text.strip().removeprefix("$").strip(), flags=re.IGNORECASE)
    number, unit = _parts(bare, what, "an amount such as $2.40")
    if unit:
        raise UsageError(f"{what} is {text!r:.60}; write US dollars, such as $2.40.")
    return number


def _scaled(text: str, what: str, units: tuple[str, ...], like: str) -> float:
    number, unit = _parts(text, what, f"a quantity such as {like}")
    bare = unit.replace(" ", "")
    if "b" in "".join(units) and _BITS.fullmatch(bare) and bare not in ("kb", "kb/s"):
        raise UsageError(f"{what} is {text!r:.60}; a small b means bits. Write bytes with a capital B, such as {like}.")
    for ending in sorted(units, key=len, reverse=True):
        scale = bare.lower().removesuffix(ending) if bare.lower().endswith(ending) else None
        if scale is not None and scale in _SCALES and not (scale == "b" and ending == ""):
            return number * float(_SCALES[scale])
    raise UsageError(f"{what} is {text!r:.60}; write a quantity such as {like}.")


def _parts(text: str, what: str, like: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{what} is {text!r:.60}; write {like}.")
    digits = re.sub(r"[_,' ]", "", found["number"])
    number = float(digits)
    if not math.isfinite(number) or number > _MOST:
        raise UsageError(f"{what} is {text!r:.60}; that is more than there is of anything.")
    return number, found["unit"].strip()


def people(value: float) -> str:
    """A count for people: 1.2 million."""
    for scale, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= scale:
            return f"{value / scale:,.3g} {name}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes for people: 61.1 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            return f"{value:.0f} B" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1000
    raise AssertionError("the last unit is returned")


def seconds(value: float) -> str:
    """A time for people: 85 ms, 3.2 s, 4.1 min, 9.4 h, 12 days."""
    for limit, scale, unit in ((1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172800.0, 3600.0, "h")):
        if value < limit:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 86400:,.3g} days"


def money(value: float) -> str:
    """US dollars for people: $0.12, $1,240."""
    return f"${value:,.0f}" if value >= 100 else f"${value:,.2f}" if value >= 0.1 else f"${value:,.3f}"
