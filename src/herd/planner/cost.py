"""What an hour and a million tokens cost, on one's own devices and from hosted services, and from which volume the first is cheaper."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

from herd.planner.devices import Device
from herd.planner.memory import Load
from herd.planner.services import OLD_AFTER_DAYS, Offer
from herd.planner.speed import Speed
from herd.records import dataclass

HOURS_PER_MONTH = 730.0
ASSUMED = (
    "an hour is paid whether or not it is used, 730 of them a month; the cost of a million tokens is that of a machine that is always busy",
    "tokens are counted as services do: those read and those written, in the proportion of the conversations asked about",
    "devices draw the power that their maker says they may; the rest of the machine and cooling are not counted",
)


@dataclass(frozen=True, slots=True)
class Range:
    """From the cheapest known to the dearest."""

    low: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)

    def said(self, say: Callable[[float], str]) -> str:
        """Both ends as `say` writes them, or the one that they are."""
        low, high = say(self.low), say(self.high)
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True, slots=True)
class Hosted:
    """An offer, what a million tokens of the asked mix cost there, and whether it is over."""

    offer: Offer
    per_million: float
    is_over: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars and energy. None: no price, power or peak is known. `per_million`: of tokens read and written, on machines that are
    always busy. `break_even`: tokens a month from which one's own machines are cheaper than hosted ones, from the cheapest
    rent against the dearest offer to the reverse. `capacity`: tokens a month that the machines can do; a break-even above it is
    never reached on them."""

    per_hour: Range | None
    per_million: Range | None
    per_million_written: Range | None
    watts: float | None
    kwh_per_million: float | None
    power_dollars_per_million: float | None
    hosted: tuple[Hosted, ...]
    break_even: Range | None
    capacity: float | None
    warnings: tuple[str, ...]


def reckon_cost(
    device: Device,
    count: int,
    speed: Speed,
    load: Load,
    offers: Sequence[Offer],
    today: datetime.date,
    dollars_per_kwh: float | None = None,
) -> Cost:
    """The cost of so many devices at this speed, against these offers."""
    rate = None if speed.with_prompts is None else speed.with_prompts * load.conversation_tokens / load.answer_tokens
    rent = device.price_range()
    per_hour = None if rent is None else Range(*rent).times(count)
    watts = None if device.power is None else device.power * count
    kwh = None if watts is None or rate is None else watts / 1000 / (rate * 3600) * 1e6
    hosted = tuple(sorted((_hosted(offer, load, today) for offer in offers), key=lambda each: (each.is_over, each.per_million)))
    return Cost(
        per_hour=per_hour,
        per_million=None if per_hour is None or rate is None else per_hour.times(1e6 / (rate * 3600)),
        per_million_written=None if per_hour is None or not speed.with_prompts else per_hour.times(1e6 / (speed.with_prompts * 3600)),
        watts=watts,
        kwh_per_million=kwh,
        power_dollars_per_million=None if kwh is None or dollars_per_kwh is None else kwh * dollars_per_kwh,
        hosted=hosted,
        break_even=_break_even(per_hour, [each.per_million for each in hosted if not each.is_over]),
        capacity=None if rate is None else rate * 3600 * HOURS_PER_MONTH,
        warnings=tuple(price_warnings(device, [each.offer for each in hosted], today)),
    )


def _hosted(offer: Offer, load: Load, today: datetime.date) -> Hosted:
    per_million = offer.dollars(load.prompt_tokens, load.answer_tokens) / load.conversation_tokens * 1e6
    return Hosted(offer, per_million, offer.is_over(today))


def _break_even(per_hour: Range | None, per_million: Sequence[float]) -> Range | None:
    """Tokens a month at which a month's rent is what a service asks for them."""
    if per_hour is None or not per_million:
        return None
    month = per_hour.times(HOURS_PER_MONTH)
    return Range(month.low / max(per_million) * 1e6, month.high / min(per_million) * 1e6)


def price_warnings(device: Device, offers: Sequence[Offer], today: datetime.date) -> list[str]:
    """One line for each source of prices that is old, has no date or was not checked, and for offers that have ended."""
    found = []
    sources = [price.source for price in device.prices] + [offer.source for offer in offers]
    for source in {source.name: source for source in sources}.values():
        age = source.age_days(today)
        if age is None:
            found.append(f"Prices from {source} have no exact date; look them up before you decide.")
        elif age > OLD_AFTER_DAYS:
            found.append(f"Prices from {source} are {age} days old; look them up before you decide.")
        elif source.unchecked:
            found.append(f"Prices from {source}: look them up before you decide.")
    ended = [f"{offer.service} (since {offer.ends})" for offer in offers if offer.is_over(today)]
    if ended:
        found.append(f"No longer offered by {', '.join(ended)}.")
    return found
