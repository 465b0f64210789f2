"""A plan as one page of HTML that needs nothing else: tables and charts, assumptions, sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from herd.planner.charts import Bar, bars_chart, lines_chart, parts_chart
from herd.planner.plan import Choice, Plan
from herd.planner.report import assumed
from herd.planner.units import money, people, seconds, size

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 0.6em 0 1.4em; width: 100%; }
td, th { padding: 0.2em 0.7em 0.2em 0; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
td:first-child, th:first-child { text-align: left; }
figure { margin: 1.2em 0; overflow-x: auto; } figcaption { font-weight: 600; }
svg { width: 100%; min-width: 600px; height: auto; font-size: 13px; }
.table { overflow-x: auto; } p, li { overflow-wrap: anywhere; }
.best td { font-weight: 600; } .warning { color: #a33; } li { margin: 0.2em 0; } small { color: #666; }
"""


def page(plan: Plan) -> str:
    """The page of a plan."""
    title = escape(f"Plan for {plan.question.release.name}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n{body(plan)}\n</body></html>\n'
    )


def body(plan: Plan) -> str:
    """What the page says, as a piece of HTML that `STYLE` is for."""
    release, load = plan.question.release, plan.question.load
    title = f"Plan for {release.name}"
    pieces = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{plan.question.today}. Stored as {escape(plan.question.stored.name)}; "
        f"{load.users:,} user{'' if load.users == 1 else 's'} answered at the same time, prompts of {load.prompt_tokens:,} "
        f"and answers of {load.answer_tokens:,} tokens, context up to {load.context:,}.</p>",
        *(f'<p class="warning">{escape(line)}</p>' for line in plan.warnings),
        _memory(plan),
        _devices(plan),
        *([_costs(plan.best)] if plan.best is not None else []),
        _changes(plan),
        _list("Published", [f"{c.least} to {c.most} x {c.device}: {c.why} ({c.source})" for c in plan.claims]),
        _list("Notes", plan.notes),
        _list("Assumed", [line for lines in assumed(plan).values() for line in lines]),
        _sources(plan),
    ]
    return "\n".join(piece for piece in pieces if piece)


def _memory(plan: Plan) -> str:
    memory = plan.memory
    parts = {f"weights: {part}": value for part, value in sorted(memory.weights.items(), key=lambda item: -item[1])}
    if memory.whole:
        parts["keys and values"] = memory.cache_kept_whole
    else:
        parts |= {f"cache, {kind}": value for kind, value in memory.cache.items()}
    parts |= {"pictures": memory.pictures, "activations": memory.buffers, "runtime": memory.runtime}
    parts = {name: value for name, value in parts.items() if value}
    limit = None
    if plan.best is not None:
        usable = plan.best.fit.usable * plan.best.fit.devices
        limit = (f"usable on {plan.best.fit.devices} x {plan.best.fit.device.name}: {size(usable)}", float(usable))
    chart = parts_chart(
        f"Memory: {size(memory.total)}", {k: float(v) for k, v in parts.items()}, {k: size(v) for k, v in parts.items()}, limit
    )
    return "<h2>Memory</h2>" + chart + _table(["part", "bytes"], [[name, size(value)] for name, value in parts.items()])


def _devices(plan: Plan) -> str:
    fitting = [choice for choice in plan.choices if choice.expected is not None]
    if not fitting:
        return _list("Devices", [f"{choice.fit.device.title}: {choice.fit.why}" for choice in plan.choices])
    rows, bars = [], []
    for choice in fitting:
        expected, bound, cost = choice.expected, choice.bound, choice.cost
        assert expected is not None and bound is not None and cost is not None
        first = "unknown" if expected.first_token_s is None else seconds(expected.first_token_s)
        hour = "no price" if cost.per_hour is None else cost.per_hour.said(money)
        needed = f"{choice.fit.devices} ({choice.fit.why})"
        rows.append([choice.fit.device.title, needed, f"{expected.alone:,.3g}", f"{expected.together:,.0f}", first, hour])
        label = f"{choice.fit.devices} x {choice.fit.device.name}"
        bars.append(Bar(label, expected.alone, f"{expected.alone:,.3g} of at most {bound.alone:,.3g}", expected.alone, bound.alone))
    best = [choice is plan.best for choice in fitting]
    head = ["device", "needed", "tokens/s alone", "all users", "first token", "an hour"]
    rest = [f"{choice.fit.device.title}: {choice.fit.why}" for choice in plan.choices if choice.expected is None]
    return (
        "<h2>Devices</h2>" + _table(head, rows, best) + bars_chart("Tokens a second for one user alone", bars) + _list("Does not fit", rest)
    )


def _costs(best: Choice) -> str:
    cost = best.cost
    assert cost is not None
    rows = []
    if cost.per_million is not None:
        rows.append(["a million tokens, own devices always busy", cost.per_million.said(money)])
    if cost.watts is not None:
        rows.append(["power", f"{cost.watts / 1000:,.2f} kW"])
    if cost.kwh_per_million is not None:
        rows.append(["energy for a million tokens", f"{cost.kwh_per_million:,.3g} kWh"])
    if cost.capacity is not None:
        rows.append(["what they can do in a month", f"{people(cost.capacity)} tokens"])
    if cost.break_even is not None:
        rows.append(["break-even", f"{cost.break_even.said(people)} tokens a month"])
    current = [each for each in cost.hosted if not each.is_over]
    bars = [Bar(each.offer.service, each.per_million, money(each.per_million)) for each in current]
    if cost.per_million is not None:
        low, high = cost.per_million.low, cost.per_million.high
        bars.insert(0, Bar(f"own {best.fit.devices} x {best.fit.device.name}", low, cost.per_million.said(money), low, high))
    pieces = [f"<h2>Cost on {best.fit.devices} x {escape(best.fit.device.title)}</h2>", _table(["what", "figure"], rows)]
    if bars:
        pieces.append(bars_chart("US dollars for a million tokens of this mix", bars))
    if cost.per_hour is not None and current:
        pieces.append(_months(best))
    return "".join(pieces)


def _months(best: Choice) -> str:
    """A month's cost over its volume: rent is flat, services rise."""
    from herd.planner.cost import HOURS_PER_MONTH

    cost = best.cost
    assert cost is not None and cost.per_hour is not None
    offers = [each for each in cost.hosted if not each.is_over]
    most = min(cost.capacity or float("inf"), 1.5 * cost.break_even.high if cost.break_even else float("inf"))
    rent = cost.per_hour.times(HOURS_PER_MONTH)
    lines = [(f"cheapest rent {money(rent.low)}", rent.low, rent.low), (f"dearest rent {money(rent.high)}", rent.high, rent.high)]
    for each in (offers[0], offers[-1]) if len(offers) > 1 else (offers[0],):
        lines.append((each.offer.service, 0.0, each.per_million * most / 1e6))
    top = max(max(start, end) for _, start, end in lines)
    return lines_chart("A month's cost", "tokens a month", most, lines, (people(most), money(top)))


def _changes(plan: Plan) -> str:
    rows = [
        [c.what, size(c.total), str(c.devices), f"{c.alone:,.3g}", f"{c.together:,.0f}"]
        for c in plan.changes
        if c.alone is not None and c.together is not None
    ]
    refused = [f"{c.what}: {c.why_not}" for c in plan.changes if c.devices is None]
    if not rows and not refused:
        return ""
    assert plan.best is not None
    head = ["instead", "memory", "devices", "tokens/s alone", "all users"]
    return f"<h2>What would change it, on {escape(plan.best.fit.device.title)}</h2>" + _table(head, rows) + _list("Not possible", refused)


def _sources(plan: Plan) -> str:
    found = dict.fromkeys(
        str(source)
        for choice in plan.choices
        for source in [*choice.fit.device.sources.values(), *(price.source for price in choice.fit.device.prices)]
    )
    hosted = dict.fromkeys(str(each.offer.source) for choice in plan.choices if choice.cost for each in choice.cost.hosted)
    return _list("Sources", [*found, *hosted])


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{escape(title)}</h2><ul>{items}</ul>" if items else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[bool] = ()) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr{' class=best' if number < len(best) and best[number] else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    )
    return f"<div class=table><table><tr>{cells}</tr>{body}</table></div>"
