"""Options of `herd plan`, and the question that they ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.family.release import Release
    from herd.planner.devices import Device
    from herd.planner.memory import Load
    from herd.planner.plan import Question

MOST_USERS = 1_000_000
PROMPT_TOKENS = 1024
"""Of a conversation that nobody gave a length."""


def _add(options: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


device_options = _add(
    [
        click.option("--device", "device_names", multiple=True, metavar="NAME", help="Only this device; can be repeated.  [default: all]"),
        click.option("--device-memory", metavar="SIZE", help="Describe a device: its memory, such as 24GiB."),
        click.option("--bandwidth", metavar="RATE", help="Describe a device: bytes per second, such as 1TB/s."),
        click.option("--compute", metavar="RATE", help="Describe a device: dense 16-bit operations, such as 165TFLOPS."),
        click.option("--power", metavar="WATTS", help="What one device draws, such as 450W."),
        click.option("--price", metavar="DOLLARS", help="What one device costs an hour, such as $2.40."),
    ]
)
load_options = _add(
    [
        click.option("--context", metavar="N", help="Longest conversation in tokens.  [default: 8192, or the model's if less]"),
        click.option("--users", default="1", show_default=True, metavar="N", help="Users who are answered at the same time."),
        click.option("--prompt-tokens", metavar="N", help="What a user's conversation holds.  [default: 1024, or what --context leaves]"),
        click.option("--answer-tokens", default="256", show_default=True, metavar="N", help="Length of an answer."),
        click.option("--pictures", type=int, default=0, show_default=True, metavar="N", help="Pictures in each conversation."),
        click.option("--quant", metavar="NAME", help="How weights are stored: bf16, fp8, q8, q4, q4_k_m.  [default: bf16; here q4_0]"),
        click.option("--cache", metavar="NAME", help="Keys and values: f16, f32, q8_0, q4_0.  [default: f16; here as herd keeps them]"),
        click.option("--keep-all", is_flag=True, help="Local layers keep all tokens too, as some engines do; herd's does not."),
    ]
)


def release_asked(name: str | None, option: str | None = None) -> Release:
    """The one model that is named."""
    from herd.family.catalogue import find

    if name is not None and option is not None and name != option:
        raise UsageError(
            f"Two models are named: {name!r:.60} and {option!r:.60}. A plan is for one; compare two with `herd models --compare`."
        )
    wanted = name or option
    if wanted is None:
        raise UsageError(
            "Name a model: herd plan llama-3.1-8b-instruct. `herd models` lists what is known, `herd models --pick` helps to choose."
        )
    return find(wanted)


def devices_asked(options: dict[str, Any]) -> list[Device]:
    """The devices that are named or described; all that are known without either."""
    from herd.planner.devices import changed, described, devices, find_device

    named = [find_device(name) for name in options["device_names"]]
    memory, bandwidth, compute = options["device_memory"], options["bandwidth"], options["compute"]
    own = {"power": options["power"], "price": options["price"]}
    if named and (bandwidth or compute):
        raise UsageError(
            f"{named[0].title} is known by its bandwidth and operations. Name a device with --device, and perhaps --device-memory, --power "
            "and --price of your own; or describe one by --device-memory, --bandwidth and --compute."
        )
    if named:
        return [changed(device, memory=memory, **own) for device in named]
    if memory or bandwidth or compute:
        if not (memory and bandwidth and compute):
            raise UsageError("A device is described by all of --device-memory, --bandwidth and --compute: 24GiB, 1TB/s and 165TFLOPS.")
        return [described(memory, bandwidth, compute, **own)]
    if any(own.values()):
        raise UsageError("--power and --price belong to a device: name one with --device, or describe one.")
    return list(devices().values())


def question_asked(release: Release, options: dict[str, Any], devices: list[Device], power_price: str | None) -> Question:
    """The question that the options ask."""
    import datetime

    from herd.planner import units
    from herd.planner.memory import cache_format
    from herd.planner.plan import ask
    from herd.planner.speed import EXPECTED

    return ask(
        release,
        quant=options["quant"] or "bf16",
        cache=cache_format(options["cache"] or "f16"),
        load=load_asked(release, options),
        devices=devices,
        today=datetime.date.today(),
        whole=options["keep_all"],
        dollars_per_kwh=None if power_price is None else units.dollars(power_price, "--power-price"),
        shares=options.get("shares", EXPECTED),
    )


def load_asked(release: Release, options: dict[str, Any]) -> Load:
    """The load that the options ask for; where a model's context is short, so are conversations that nobody gave a length."""
    from herd.planner import units
    from herd.planner.memory import Load

    most = release.context_length or 8192
    context = units.count(options["context"], "--context") if options["context"] else min(8192, most)
    users = units.count(options["users"], "--users")
    if users > MOST_USERS:
        raise UsageError(f"--users is {users:,}; a plan is for up to {MOST_USERS:,} who are answered at the same time.")
    answer_tokens = units.count(options["answer_tokens"], "--answer-tokens")
    given = options["prompt_tokens"]
    prompt = units.count(given, "--prompt-tokens") if given else max(1, min(PROMPT_TOKENS, context - answer_tokens))
    if not options["context"] and prompt + answer_tokens > context:
        context = min(prompt + answer_tokens, most)
    return Load(users, context, prompt, answer_tokens, options["pictures"])
