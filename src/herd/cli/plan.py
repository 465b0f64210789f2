"""`herd plan`: what fits, how fast, what it costs, before anything is downloaded or rented."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples, offline_option
from herd.cli.plan_options import device_options, devices_asked, load_options, question_asked, release_asked
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.family.release import Release
    from herd.planner.devices import Device


HERE = "this-machine"


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
@load_options
@device_options
@click.option("--power-price", metavar="DOLLARS", help="Price of a kilowatt-hour, such as $0.25.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a page with charts too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def for_model(name: str | None, model: str | None, html: Path | None, as_json: bool, power_price: str | None, **options: Any) -> None:
    """Plan for MODEL: memory, devices, speed, cost, and what would change them."""
    from herd.planner.plan import answer

    release = release_asked(name, model)
    if not release.is_released:
        _tell_unknown(release, as_json)
        return
    question = question_asked(release, options, devices_asked(options), power_price)
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
@load_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def this_machine(model: str | None, threads: int | None, as_json: bool, **options: Any) -> None:
    """Measure this machine's memory and arithmetic, and say which models run on it and how fast. Nothing is downloaded."""
    from herd.cli.plan_here import as_herd_runs, formats_of, measure, served, tell_all, tell_one
    from herd.planner.plan import answer

    options = as_herd_runs(options)
    if model is None:
        tell_all(measure(threads, formats_of(served(), options["quant"]), options["cache"]), options, as_json)
        return
    release = release_asked(model)
    if not release.is_released:
        _tell_unknown(release, as_json)
        return
    question_asked(release, options, [], None)  # what cannot be is said before anything is measured
    device = measure(threads, formats_of([release], options["quant"]), options["cache"])
    tell_one(answer(question_asked(release, options, [device], None), with_changes=False), device, as_json)


@plan.command(
    "train",
    cls=Examples,
    short_help="What training takes.",
    examples="""
    herd plan train llama-3.1-8b --method lora --tokens 10M
    herd plan train llama-3.1-70b --method qlora --tokens 50M --sequence 4096 --device h100
    herd plan train llama-3.2-1b --method pretrain --tokens 100B --batch 4M --device h200
    herd plan train smollm2-135m --method lora --tokens 1M --sequence 1024 --device this-machine
    """,
)
@click.argument("name", required=False, metavar="[MODEL]")
@click.option("--model", metavar="MODEL", help="The model, instead of as an argument.")
@click.option("--method", default="lora", show_default=True, metavar="NAME", help="full, lora, qlora or pretrain.")
@click.option("--tokens", required=True, metavar="N", help="Tokens to train on in all, such as 10M.")
@click.option("--sequence", default="2048", show_default=True, metavar="N", help="Length of a sequence in tokens.")
@click.option("--sequences", type=int, default=1, show_default=True, metavar="N", help="Sequences in one device's memory at once.")
@click.option("--batch", metavar="N", help="Tokens of one step over all devices; limits how many can take part.")
@click.option("--rank", type=int, metavar="N", help="Of LoRA.  [default: 16]")
@click.option("--no-checkpointing", is_flag=True, help="Keep all activations instead of computing them again.")
@click.option(
    "--device",
    "device_names",
    multiple=True,
    metavar="NAME",
    help="The device; this-machine is measured.  [default: h100-sxm]",
)
@click.option("--device-memory", metavar="SIZE", help="Describe a device: its memory, such as 24GiB.")
@click.option("--bandwidth", metavar="RATE", help="Describe a device: bytes per second, such as 1TB/s.")
@click.option("--compute", metavar="RATE", help="Describe a device: dense 16-bit operations, such as 165TFLOPS.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def train(name: str | None, model: str | None, as_json: bool, **options: Any) -> None:
    """Say what memory and time training MODEL takes, and on how many devices it fits."""
    from herd.planner import training, units

    release = release_asked(name, model)
    config = release.config()
    method = options["method"].lower()
    if options["rank"] is not None and method in ("full", "pretrain"):
        raise UsageError(f"--rank is of LoRA, and --method {method} learns all weights. Leave it out, or take --method lora.")
    run = training.Run(
        method=method,
        tokens=units.count(options["tokens"], "--tokens"),
        sequence_tokens=units.count(options["sequence"], "--sequence"),
        sequences=options["sequences"],
        batch_tokens=units.count(options["batch"], "--batch") if options["batch"] else None,
        rank=16 if options["rank"] is None else options["rank"],
        checkpointing=not options["no_checkpointing"],
    )
    training.check_run(run, config, release.name)
    devices = _devices_for_training(options)
    found = [(training.reckon_run(config, run, device), device) for device in devices]
    if as_json:
        from herd.cli.output import print_json
        from herd.planner.report import training_data

        print_json({"plans": [training_data(each, release.name, device) for each, device in found]})
        return
    from herd.cli.plan_tables import print_training

    for each, device in found:
        print_training(each, release, device)


def _devices_for_training(options: dict[str, Any]) -> list[Device]:
    """The devices that are named or described, and this machine, measured."""
    names = options["device_names"]
    given = [name for name in ("device_memory", "bandwidth", "compute") if options[name]]
    others = tuple(name for name in names if name != HERE)
    if len(others) < len(names) and given:
        raise UsageError(f"--device {HERE} is measured; leave out --{given[0].replace('_', '-')}.")
    if not names and not given:
        others = ("h100-sxm",)
    described = options | {"power": None, "price": None, "device_names": others}
    found = devices_asked(described) if others or given else []
    if len(others) < len(names):
        from herd.cli.plan_here import measure

        found.append(measure(None))
    return found


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
