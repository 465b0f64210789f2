"""`herd plan this-machine`: the limits of this processor, measured, and what they mean for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from herd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from herd.family.release import Release
    from herd.planner.devices import Device
    from herd.planner.plan import Choice, Plan

_READABLE_TOKENS_PER_S = 5.0
"""About as fast as people read."""


def measure(threads: int | None, products: tuple[str, ...] = (), cache: str | None = None) -> Device:
    """This machine as the planner sees one: memory that is free now, and measured bandwidth, peaks, and what products of weights in
    these formats and attention over such a cache reach. Takes a second or two."""
    import datetime

    from herd.backends.cpu.limits import measure_bandwidth, measure_float32, measure_int8
    from herd.backends.cpu.reached import measure_layer
    from herd.cli.output import spinning
    from herd.dtypes import BY_NAME
    from herd.engine.memory import available_bytes
    from herd.models.sizes import CACHE_DTYPES
    from herd.planner.devices import Device
    from herd.planner.memory import cache_format
    from herd.planner.reading import Source

    if threads is not None and threads < 1:
        raise UsageError(f"--threads is {threads}; it must be at least 1.")
    wanted = None if cache is None else cache_format(cache)
    kv_cache = next((name for name, dtype in CACHE_DTYPES.items() if dtype is wanted), "auto")
    with spinning("measuring"):
        bandwidth, int8, float32 = measure_bandwidth(threads), measure_int8(threads), measure_float32(threads)
        reached = {name: measure_layer(BY_NAME[name], kv_cache, threads) for name in products}
    now = Source("measured", "measured on this machine", datetime.date.today())
    return Device(
        name="this-machine",
        title="this machine",
        kind="cpu",
        memory=available_bytes(),
        bandwidth=bandwidth,
        peaks={"int8": int8, "fp32": float32},
        products={name: each.products for name, each in reached.items()},
        attention=next((each.attention for each in reached.values()), None),
        sources=dict.fromkeys(("memory", "bandwidth", "int8", "fp32", *(["products"] if reached else [])), now),
    )


def formats_of(releases: Iterable[Release], quant: str) -> tuple[str, ...]:
    """The formats of the matrices of these models, stored so, that herd's engine multiplies."""
    from herd.dtypes import BY_NAME
    from herd.models.architecture import architecture_of
    from herd.models.sizes import part_of
    from herd.models.weights import Kind
    from herd.planner.formats import format_named

    found: dict[str, None] = {}
    for release in releases:
        config = release.config()
        try:
            stored = format_named(quant, release, config).on("cpu")
        except UsageError:
            continue
        specs = (spec for spec in architecture_of(config).tensors(config) if spec.kind in (Kind.MATRIX, Kind.EXPERTS))
        chosen = (stored.chosen(spec).name for spec in specs if part_of(spec) != "vision")
        found |= dict.fromkeys(name for name in chosen if name in BY_NAME)
    return tuple(found)


def as_herd_runs(options: dict[str, Any]) -> dict[str, Any]:
    """What nobody asked for is as herd's engine does it on a processor: all keys and values kept, in float16 where block formats meet
    int8 activations, else float32; the shares of the machine's limits are herd's."""
    from herd.planner.formats import is_plain
    from herd.planner.speed import HERE

    quant = options["quant"] or "q4_0"
    return options | {"quant": quant, "cache": options["cache"] or ("f32" if is_plain(quant) else "f16"), "shares": HERE}


def tell_one(plan: Plan, device: Device, as_json: bool) -> None:
    """The plan of one model here."""
    from herd.cli.output import print_json
    from herd.cli.plan_tables import print_plan
    from herd.planner.report import device_data, plan_data

    choice = plan.choices[0]
    if as_json:
        print_json({"machine": device_data(device), **plan_data(plan), "verdict": verdict(choice)})
        return
    click.echo(machine_said(device))
    click.echo(verdict(choice))
    click.echo("")
    print_plan(plan)


def tell_all(device: Device, options: dict[str, Any], as_json: bool) -> None:
    """One line for each model that somebody serves, fastest last; formats that do not exist for a model are left out."""
    from herd.cli.output import print_json, print_table
    from herd.cli.plan_options import PROMPT_TOKENS
    from herd.planner.report import choice_data, device_data
    from herd.planner.units import seconds, size

    found = _choices(device, options)
    if as_json:
        rows = [{"model": name, "verdict": verdict(choice), **choice_data(choice)} for name, choice in found]
        print_json({"machine": device_data(device), "models": rows})
        return
    click.echo(machine_said(device))
    lines = []
    for name, choice in found:
        if choice.expected is not None:
            first = choice.expected.first_token_s
            lines.append([name, size(choice.fit.per_device), f"{choice.expected.alone:,.3g}", "" if first is None else seconds(first)])
    if lines:
        print_table(["MODEL", "MEMORY", "TOKENS/S", "FIRST TOKEN"], lines)
    too_large = [name for name, choice in found if choice.expected is None]
    if too_large:
        click.echo(f"Too large for the memory that is free now: {', '.join(too_large)}.")
    click.echo(
        f"Weights as {options['quant']}; a prompt of {options['prompt_tokens'] or PROMPT_TOKENS} tokens. "
        "Details: herd plan this-machine --model NAME"
    )


def served() -> list[Release]:
    """Published language models that somebody would serve, of which weights can be had."""
    from herd.family.catalogue import releases

    kinds = ("instruct", "guard")
    return [each for each in releases().values() if each.shape is not None and each.kind in kinds and each.is_takeable()]


def _choices(device: Device, options: dict[str, Any]) -> list[tuple[str, Choice]]:
    """For each published language model whose load is possible, its place on this machine."""
    from herd.cli.plan_options import load_asked, question_asked
    from herd.planner.plan import choose

    found = []
    for release in served():
        try:
            load_asked(release, options)
            found.append((release.name, choose(question_asked(release, options, [device], None), device)))
        except UsageError:
            continue
    return found


def machine_said(device: Device) -> str:
    from herd.planner.units import size

    peaks = ", ".join(f"{rate / 1e9:,.0f} GOPS in {name}" for name, rate in device.peaks.items())
    memory = "an unknown amount of memory" if device.memory is None else f"{size(device.memory)} of memory free"
    reached = "".join(f"; products of {name} weights reach {rate / 1e9:,.0f}" for name, rate in device.products.items())
    return f"This machine: {memory}, reads {size(device.bandwidth)}/s, at most {peaks}{reached}."


def verdict(choice: Choice) -> str:
    """Whether it runs here, and how that feels, in one sentence."""
    from herd.planner.units import size

    if choice.expected is None:
        if choice.fit.usable == 0:
            return "How much memory this machine has cannot be told, so whether it fits cannot either."
        return (
            f"It does not fit: {size(choice.fit.per_device)} are needed, {size(choice.fit.usable)} can be used. A narrower --quant may do."
        )
    rate = choice.expected.alone
    feeling = "faster than people read" if rate >= _READABLE_TOKENS_PER_S else "slower than people read"
    return f"It runs here: {size(choice.fit.per_device)} of memory, about {rate:,.3g} tokens a second, {feeling}."
