"""`herd plan`: what fits, how fast, what it costs, before anything is downloaded or rented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples, offline_option
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.family.release import Release
    from herd.planner.devices import Device
    from herd.planner.memory import Load
    from herd.planner.plan import Question

MOST_USERS = 1_000_000


class Planning(Examples, click.Group):
    """`herd plan MODEL ...` and `herd plan --model MODEL ...` are the same; other first words are its subcommands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["model", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, "model")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        formatter.write("\nOptions of a plan for a model: herd plan model --help\n")


def _add(options: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_device_options = _add(
    [
        click.option("--device", "device_names", multiple=True, metavar="NAME", help="Only this device; can be repeated.  [default: all]"),
        click.option("--device-memory", metavar="SIZE", help="Describe a device: its memory, such as 24GiB."),
        click.option("--bandwidth", metavar="RATE", help="Describe a device: bytes per second, such as 1TB/s."),
        click.option("--compute", metavar="RATE", help="Describe a device: dense 16-bit operations, such as 165TFLOPS."),
        click.option("--power", metavar="WATTS", help="Describe a device: what it draws, such as 450W."),
        click.option("--price", metavar="DOLLARS", help="What one device costs an hour, such as $2.40."),
    ]
)
_load_options = _add(
    [
        click.option("--context", metavar="N", help="Longest conversation in tokens.  [default: 8192, or the model's if less]"),
        click.option("--users", default="1", show_default=True, metavar="N", help="Users who are answered at the same time."),
        click.option("--prompt-tokens", default="1024", show_default=True, metavar="N", help="What a user's conversation holds."),
        click.option("--answer-tokens", default="256", show_default=True, metavar="N", help="Length of an answer."),
        click.option("--pictures", type=int, default=0, show_default=True, metavar="N", help="Pictures in each conversation."),
        click.option(
            "--quant", default="bf16", show_default=True, metavar="NAME", help="How weights are stored: bf16, fp8, q8, q4, q4_k_m."
        ),
        click.option("--cache", default="f16", show_default=True, metavar="NAME", help="Keys and values: f16, f32, q8_0, q4_0."),
        click.option("--keep-all", is_flag=True, help="Local layers keep all tokens too, as herd's engine does today."),
    ]
)


@click.group(
    cls=Planning,
    short_help="What fits, how fast, at what cost.",
    examples="""
    herd plan --model llama-4-scout --context 131072 --users 200 --quant q4
    herd plan llama-3.1-8b-instruct --device rtx-4090 --quant q4_k_m
    herd plan llama-3.3-70b-instruct --users 50 --html plan.html
    herd plan this-machine                     what runs here, and how fast
    herd plan train llama-3.1-8b --method lora --tokens 10M
    """,
)
@click.option("--model", metavar="MODEL", hidden=True, help="The model.")
def plan(model: str | None) -> None:
    """Say what a model takes, where it fits, how fast it answers there and what that costs. Nothing is downloaded."""


@plan.command("model", cls=Examples, short_help="For one model (the default).", examples="herd plan llama-4-scout --quant q4 --users 200")
@click.argument("name", required=False, metavar="[MODEL]")
@click.option("--model", metavar="MODEL", help="The model, instead of as an argument.")
@_load_options
@_device_options
@click.option("--power-price", metavar="DOLLARS", help="Price of a kilowatt-hour, such as $0.25.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a page with charts too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def for_model(name: str | None, model: str | None, html: Path | None, as_json: bool, power_price: str | None, **options: Any) -> None:
    """Plan for MODEL: memory, devices, speed, cost, and what would change them."""
    from herd.planner.plan import answer

    release = _release(name, model)
    if not release.is_released:
        _tell_unknown(release, as_json)
        return
    question = question_asked(release, options, _devices(options), power_price)
    found = answer(question)
    if html is not None:
        from herd.files import atomic_write
        from herd.planner.page import page

        with atomic_write(html) as file:
            file.write(page(found).encode())
    if as_json:
        from herd.cli.output import print_json
        from herd.planner.report import plan_data

        print_json(plan_data(found))
        return
    from herd.cli.plan_tables import print_plan

    print_plan(found)
    if html is not None:
        click.echo(f"The same with charts: {html}")


@plan.command(
    "this-machine",
    cls=Examples,
    short_help="What runs here, measured.",
    examples="""
    herd plan this-machine
    herd plan this-machine --model llama-3.2-3b-instruct --quant q4_k_m --json
    """,
)
@click.option("--model", metavar="MODEL", help="Only this model, in detail.  [default: all that fit]")
@click.option("--threads", type=int, metavar="N", help="Threads to use.  [default: one per core]")
@_load_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def this_machine(model: str | None, threads: int | None, as_json: bool, **options: Any) -> None:
    """Measure this machine's memory and arithmetic, and say which models run on it and how fast. Nothing is downloaded."""
    from herd.cli.plan_here import measure, tell_all, tell_one
    from herd.planner.plan import answer

    device = measure(threads)
    if model is None:
        tell_all(device, options, as_json)
        return
    release = _release(model, None)
    if not release.is_released:
        _tell_unknown(release, as_json)
        return
    tell_one(answer(question_asked(release, options, [device], None), with_changes=False), device, as_json)


@plan.command(
    "train",
    cls=Examples,
    short_help="What training takes.",
    examples="""
    herd plan train llama-3.1-8b --method lora --tokens 10M
    herd plan train llama-3.1-70b --method qlora --tokens 50M --sequence 4096 --device h100
    herd plan train llama-3.2-1b --method pretrain --tokens 100B --batch 4M --device h200
    """,
)
@click.argument("model")
@click.option("--method", default="lora", show_default=True, metavar="NAME", help="full, lora, qlora or pretrain.")
@click.option("--tokens", required=True, metavar="N", help="Tokens to train on in all, such as 10M.")
@click.option("--sequence", default="2048", show_default=True, metavar="N", help="Length of a sequence in tokens.")
@click.option("--sequences", type=int, default=1, show_default=True, metavar="N", help="Sequences in one device's memory at once.")
@click.option("--batch", metavar="N", help="Tokens of one step over all devices; limits how many can take part.")
@click.option("--rank", type=int, default=16, show_default=True, metavar="N", help="Of LoRA.")
@click.option("--no-checkpointing", is_flag=True, help="Keep all activations instead of computing them again.")
@click.option("--device", "device_names", multiple=True, default=("h100-sxm",), show_default=True, metavar="NAME", help="The device.")
@click.option("--device-memory", metavar="SIZE", help="Describe a device: its memory, such as 24GiB.")
@click.option("--bandwidth", metavar="RATE", help="Describe a device: bytes per second, such as 1TB/s.")
@click.option("--compute", metavar="RATE", help="Describe a device: dense 16-bit operations, such as 165TFLOPS.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def train(model: str, as_json: bool, **options: Any) -> None:
    """Say what memory and time training MODEL takes, and on how many devices it fits."""
    from herd.planner import training, units

    release = _release(model, None)
    config = release.config()
    run = training.Run(
        method=options["method"].lower(),
        tokens=units.count(options["tokens"], "--tokens"),
        sequence_tokens=units.count(options["sequence"], "--sequence"),
        sequences=options["sequences"],
        batch_tokens=units.count(options["batch"], "--batch") if options["batch"] else None,
        rank=options["rank"],
        checkpointing=not options["no_checkpointing"],
    )
    training.check_run(run, config, release.name)
    devices = _devices(options | {"power": None, "price": None})
    found = [(training.reckon_run(config, run, device), device) for device in devices]
    if as_json:
        from herd.cli.output import print_json
        from herd.planner.report import training_data

        print_json({"plans": [training_data(each, release.name, device) for each, device in found]})
        return
    from herd.cli.plan_tables import print_training

    for each, device in found:
        print_training(each, release, device)


def _release(name: str | None, option: str | None) -> Release:
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


def _devices(options: dict[str, Any]) -> list[Device]:
    """The devices that are named or described; all that are known without either."""
    from herd.planner.devices import described, devices, find_device

    given = [options["device_memory"], options["bandwidth"], options["compute"]]
    if any(given):
        if not all(given):
            raise UsageError("A device is described by all of --device-memory, --bandwidth and --compute: 24GiB, 1TB/s and 165TFLOPS.")
        return [described(*given, power=options["power"], price=options["price"])]
    if options["power"] or options["price"]:
        raise UsageError("--power and --price belong to a described device: give --device-memory, --bandwidth and --compute too.")
    return [find_device(name) for name in options["device_names"]] or list(devices().values())


def question_asked(release: Release, options: dict[str, Any], devices: list[Device], power_price: str | None) -> Question:
    """The question that the options ask."""
    import datetime

    from herd.planner import units
    from herd.planner.memory import cache_format
    from herd.planner.plan import ask

    return ask(
        release,
        quant=options["quant"],
        cache=cache_format(options["cache"]),
        load=load_asked(release, options),
        devices=devices,
        today=datetime.date.today(),
        whole=options["keep_all"],
        dollars_per_kwh=None if power_price is None else units.dollars(power_price, "--power-price"),
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
    prompt, answer_tokens = (units.count(options[name], f"--{name.replace('_', '-')}") for name in ("prompt_tokens", "answer_tokens"))
    if not options["context"] and prompt + answer_tokens > context:
        context = min(prompt + answer_tokens, most)
    return Load(users, context, prompt, answer_tokens, options["pictures"])


def _tell_unknown(release: Release, as_json: bool) -> None:
    from herd.cli.output import print_json
    from herd.planner.unknown import said_of

    said = said_of(release)
    if as_json:
        print_json({"model": release.name, "is_released": False, **{name.replace(" ", "_"): lines for name, lines in said.items()}})
        return
    click.echo(f"{release.name} was announced and never released; no plan can be made for it.")
    for name, lines in said.items():
        click.echo(f"{name}:")
        for line in lines:
            click.echo(f"  {line}")
