"""Plans as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from herd.family.release import Release
    from herd.planner.devices import Device
    from herd.planner.plan import Choice, Plan
    from herd.planner.training import TrainingPlan

_WIDTH = 160
"""Columns of tables where nobody looks at them on a terminal."""


def console() -> Console:
    import sys

    from rich.console import Console

    from herd.cli.output import is_terminal

    return Console(highlight=False, width=None if is_terminal(sys.stdout) else _WIDTH)


def table(title: str, *columns: str) -> Any:
    """A table whose first column is text and whose others are figures."""
    from rich.table import Table

    made = Table(show_edge=False, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return made


def print_plan(plan: Plan) -> None:
    """Memory, devices, cost, changes, then assumptions and warnings."""
    out, load = console(), plan.question.load
    out.print(
        f"{plan.question.release.name}, {plan.question.stored.name}: {load.users:,} user{'s' if load.users > 1 else ''} at once, "
        f"prompts of {load.prompt_tokens:,} and answers of {load.answer_tokens:,} tokens, context up to {load.context:,}\n"
    )
    _print_memory(out, plan)
    _print_devices(out, plan)
    if plan.best is not None:
        _print_cost(out, plan.best)
    if plan.changes:
        _print_changes(out, plan)
    print_claims(out, plan)
    _print_lines(out, "Notes", plan.notes)
    from herd.planner.report import assumed

    _print_lines(out, "Assumed", [line for lines in assumed(plan).values() for line in lines])
    _print_lines(out, "Warnings", plan.warnings)


def _print_memory(out: Console, plan: Plan) -> None:
    from herd.planner.units import size

    memory = plan.memory
    made = table("Memory", "what", "bytes")
    for part, size_bytes in sorted(memory.weights.items(), key=lambda item: -item[1]):
        made.add_row(f"weights: {part}", size(size_bytes))
    for kind, size_bytes in memory.cache.items():
        made.add_row(f"keys and values: {kind}", size(size_bytes))
    if memory.whole:
        made.add_row("keys and values, everything kept", size(memory.cache_kept_whole))
    for what, size_bytes in (("pictures", memory.pictures), ("activations", memory.buffers), ("runtime", memory.runtime)):
        if size_bytes:
            made.add_row(what, size(size_bytes))
    where = f" on {plan.best.fit.devices} x {plan.best.fit.device.name}" if plan.best and plan.best.fit.devices > 1 else ""
    made.add_row(f"together{where}", size(memory.total), style="bold")
    out.print(made)
    out.print()


def _print_devices(out: Console, plan: Plan) -> None:
    columns = ("device", "needed", "on each", "alone", "all users", "first token", "per hour", "per M tokens")
    made = table("Devices (tokens/s: expected, and in brackets the bound)", *columns)
    left_out = []
    for choice in plan.choices:
        if choice.fit.layout is None:
            left_out.append(f"{choice.fit.device.name}: {choice.fit.why}")
            continue
        made.add_row(*_device_row(choice), style="bold" if choice is plan.best else "")
    if plan.best is not None:
        out.print(made)
    _print_lines(out, "Does not fit", left_out)
    out.print()


def _device_row(choice: Choice) -> list[str]:
    from herd.planner.units import money, seconds, size

    expected, bound, cost = choice.expected, choice.bound, choice.cost
    assert expected is not None and bound is not None and cost is not None
    return [
        choice.fit.device.title,
        str(choice.fit.devices),
        f"{size(choice.fit.per_device)} of {size(choice.fit.usable)}",
        f"{expected.alone:,.3g} ({bound.alone:,.3g})",
        f"{expected.together:,.0f} ({bound.together:,.0f})",
        "unknown" if expected.first_token_s is None else seconds(expected.first_token_s),
        "no price" if cost.per_hour is None else cost.per_hour.said(money),
        "" if cost.per_million is None else cost.per_million.said(money),
    ]


def _print_cost(out: Console, best: Choice) -> None:
    from herd.planner.units import money, people, seconds

    cost, expected = best.cost, best.expected
    assert cost is not None and expected is not None
    made = table(f"On {best.fit.devices} x {best.fit.device.title} ({best.fit.why})", "what", "figure")
    last, written = expected.last_first_token_s, expected.with_prompts
    rows: list[tuple[str, str | None]] = [
        ("one user alone waits for", expected.waits_alone_for),
        ("all users together wait for", expected.waits_for),
        ("tokens written a second, with prompts", None if written is None else f"{written:,.0f}" if written >= 100 else f"{written:.3g}"),
        ("first token if all ask at once, the last of them", None if last is None else seconds(last)),
        ("power", None if cost.watts is None else f"{cost.watts / 1000:,.2f} kW"),
        ("energy for a million tokens", None if cost.kwh_per_million is None else f"{cost.kwh_per_million:,.3g} kWh"),
        ("of it, price", None if cost.power_dollars_per_million is None else money(cost.power_dollars_per_million)),
        ("a million tokens read and written", None if cost.per_million is None else cost.per_million.said(money)),
        ("a million written, reading included", None if cost.per_million_written is None else cost.per_million_written.said(money)),
        ("what it can do in a month", None if cost.capacity is None else f"{people(cost.capacity)} tokens"),
    ]  # fmt: skip
    for what, value in rows:
        if value is not None:
            made.add_row(what, value)
    out.print(made)
    out.print()
    if not cost.hosted:
        out.print("No hosted price is known for this model.\n")
        return
    offers = table("Hosted services, a million tokens of the same mix", "service", "read", "written", "mix", "ends")
    for each in cost.hosted:
        ends = "" if each.offer.ends is None else f"{'ended ' if each.is_over else ''}{each.offer.ends}"
        offers.add_row(each.offer.service, money(each.offer.reading), money(each.offer.writing), money(each.per_million), ends)
    out.print(offers)
    sources = dict.fromkeys(each.offer.source for each in cost.hosted)
    out.print(f"Source: {'; '.join(map(str, sources))}. {break_even_said(best)}\n")


def break_even_said(best: Choice) -> str:
    """From which volume one's own devices are cheaper, in one sentence."""
    from herd.planner.units import people

    cost = best.cost
    assert cost is not None
    if cost.break_even is None:
        return "Where the break-even lies cannot be said: a rent or a current offer is missing."
    low, high = cost.break_even.low, cost.break_even.high
    said = f"Renting breaks even between {people(low)} and {people(high)} tokens a month"
    if cost.capacity is None:
        return f"{said}."
    if low > cost.capacity:
        return f"{said}: more than the {people(cost.capacity)} that these devices can do, so hosted services are cheaper at any volume."
    share = f"{low / cost.capacity:.0%}"
    if high > cost.capacity:
        return f"{said}: {share} of what these devices can do with the cheapest rent, never with the dearest against the cheapest offer."
    return f"{said}: {share} to {high / cost.capacity:.0%} of what these devices can do."


def _print_changes(out: Console, plan: Plan) -> None:
    from herd.planner.units import size

    assert plan.best is not None
    made = table(f"What would change it, on {plan.best.fit.device.title}", "instead", "memory", "devices", "alone", "all users")
    made.add_row("(as asked)", size(plan.memory.total), str(plan.best.fit.devices), *_rates(plan.best))
    refused = []
    for change in plan.changes:
        if change.devices is None:
            refused.append(f"{change.what}: {change.why_not}")
        else:
            made.add_row(change.what, size(change.total), str(change.devices), f"{change.alone:,.3g}", f"{change.together:,.0f}")
    out.print(made)
    _print_lines(out, "Not possible", refused)
    out.print()


def _rates(choice: Choice) -> tuple[str, str]:
    assert choice.expected is not None
    return f"{choice.expected.alone:,.3g}", f"{choice.expected.together:,.0f}"


def print_claims(out: Console, plan: Plan) -> None:
    ours = {choice.fit.device.name: choice.fit.devices for choice in plan.choices}
    lines = []
    for claim in plan.claims:
        said = str(claim.least) if claim.least == claim.most else f"{claim.least} to {claim.most}"
        own = f"; for this load {ours[claim.device]}" if ours.get(claim.device) else ""
        lines.append(f"{said} x {claim.device}{own}. {claim.why} ({claim.source})")
    _print_lines(out, "Published", lines)


def _print_lines(out: Console, title: str, lines: Any) -> None:
    if not lines:
        return
    out.print(title, style="bold")
    for line in lines:
        out.print(f"  {line}", soft_wrap=False)


def print_training(plan: TrainingPlan, release: Release, device: Device) -> None:
    """Memory of a step, operations, and the layouts that fit."""
    from herd.planner.training import assumed, parts
    from herd.planner.units import people, seconds, size

    out, run = console(), plan.run
    out.print(
        f"{release.name}, {run.method}: {people(plan.trained)} of {people(plan.parameters)} weights trained on {people(run.tokens)} "
        f"tokens, {run.sequences} sequence{'s' if run.sequences > 1 else ''} of {run.sequence_tokens:,}, "
        f"{'with' if run.checkpointing else 'without'} checkpointing\n"
    )
    made = table("Memory of a step", "what", "bytes")
    for what, value in parts(plan.memory).items():
        made.add_row(what, size(value))
    made.add_row("together, on one device", size(plan.memory.total), style="bold")
    out.print(made)
    out.print(f"\n{plan.operations_per_token:,.4g} operations a token, {plan.operations:,.3g} in all\n")
    if not plan.layouts:
        where = f"on {device.title}" if device.most == 1 else f"on any number of {device.title}"
        out.print(f"It does not fit {where}: {plan.why_not}.")
    else:
        ways = table(f"On {device.title}", "how", "devices", "on each", "tokens/s", "time")
        for each in plan.layouts[:6]:
            rate = "unknown" if each.tokens_per_s is None else f"{each.tokens_per_s:,.0f}"
            time = "unknown" if each.seconds is None else seconds(each.seconds)
            ways.add_row(each.how, f"{each.devices:,}", f"{size(each.per_device)} of {size(each.usable)}", rate, time)
        out.print(ways)
    _print_lines(out, "Assumed", assumed(device))
