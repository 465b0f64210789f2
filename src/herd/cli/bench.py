"""`herd bench`: how fast a model, or any release's shape, runs here, beside what this machine can do and beside other engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.bench_targets import FEW_TASKS
from herd.cli.options import Examples, loading_options
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.bench.bounds import Bounds
    from herd.bench.report import Figure
    from herd.bench.tasks import Seen

LIMITS = "limits"


@click.command(
    cls=Examples,
    short_help="Time a model beside the machine's limits.",
    examples="""
    herd bench smollm2-135m-instruct                            answers, prompts and the start of a model
    herd bench ./model.gguf --what all --plot roofline.svg      everything, and a picture
    herd bench --shape llama-3.2-1b --quant q4_0                any release's shape, with random weights
    herd bench --shape llama-3.1-70b --layers 4 --what decode   a part of one that is too large
    herd bench limits                                           what this machine can do at most
    """,
)
@click.argument("model", required=False)
@click.option("--shape", metavar="NAME", help="Instead of a model: a release's shape with random weights.")
@click.option("--quant", default="q4_0", show_default=True, metavar="NAME", help="For --shape: the number format of the weights.")
@click.option("--layers", type=int, metavar="N", help="For --shape: only the first N layers.")
@click.option(
    "--what",
    metavar="NAMES",
    help="decode, steps, parts, sequences, context, prompt, long-prompt, start, memory, or all.  "
    f"[default: {FEW_TASKS}; with --shape all that fit]",
)
@click.option("--peers", metavar="NAMES", help="Engines to compare with: llama.cpp, openvino, or none.  [default: those installed]")
@click.option("--prompt-tokens", type=int, default=512, show_default=True, metavar="N", help="Length of the prompt that is timed.")
@click.option("--decode-tokens", type=int, default=128, show_default=True, metavar="N", help="Length of the answer that is timed.")
@click.option("--rounds", type=int, default=3, show_default=True, metavar="N", help="Times that each is repeated; the median counts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Keep the figures, a JSON object a line.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="A roofline of all tasks, .svg.")
@loading_options
def bench(model: str | None, shape: str | None, **options: Any) -> None:
    """Time MODEL, or a release's shape: tokens per second, the cost of steps, time to the first token, peak memory, each beside the
    bound that this machine sets, and beside llama.cpp and OpenVINO GenAI where they are installed (herd-llama[bench]).

    Every engine runs in a process of its own, on the same ids; rounds alternate between them.
    """
    _check(model, shape, options)
    if model == LIMITS:
        _tell_limits(options)
        return
    from herd.bench.report import commit, figures_of, machine
    from herd.bench.tasks import measure
    from herd.cli.bench_targets import model_target, shape_target

    with shape_target(shape, options) if shape is not None else model_target(str(model), options) as target:
        wanted = target.wanted(options, is_shape=shape is not None)
        limits = (lambda: measured_limits(options["threads"], target.kinds)) if options["backend"] == "cpu" else None
        with _telling() as told:
            seen = measure(target.engines(options, wanted), wanted, limits, told)
        figures = figures_of(seen, target.bounds if limits is not None else None)
        threads = options["threads"] or machine()["cores"]
        facts = {"machine": machine(), "threads": threads, "commit": commit(), **target.facts, "versions": seen.versions}
        _keep(options, figures, facts, target.bounds, seen)
    _tell(target.title, figures, facts, seen, options["as_json"])


def _check(model: str | None, shape: str | None, options: dict[str, Any]) -> None:
    """`UsageError` before anything is measured for options that make no sense together."""
    from herd.bench.tasks import tasks_named
    from herd.cli.bench_targets import peers_named

    if (model is None) == (shape is None):
        raise UsageError(
            "Give a model, or a release's shape: herd bench --shape llama-3.2-1b. `herd bench limits` measures the machine alone."
        )
    for name, least in (("prompt_tokens", 1), ("decode_tokens", 2), ("rounds", 1)):
        if options[name] < least:
            raise UsageError(f"--{name.replace('_', '-')} is {options[name]}; it must be at least {least}.")
    if options["threads"] is not None and options["threads"] < 1:
        raise UsageError(f"--threads is {options['threads']}; it must be at least 1.")
    if shape is None and options["layers"] is not None:
        raise UsageError("--layers is for --shape; a model has the layers that it has.")
    tasks = tasks_named(options["what"] or FEW_TASKS)
    if "parts" in tasks and options["what"] != "all" and options["backend"] != "cpu":
        raise UsageError(f"Only the cpu backend times its instructions; leave parts out of --what, or --backend {options['backend']}.")
    peers_named(options["peers"])
    for name in ("plot", "output"):
        if options[name] is not None and not options[name].absolute().parent.is_dir():
            raise UsageError(f"{options[name].parent} is no folder; make it first.")
    if options["plot"] is not None and options["plot"].suffix != ".svg":
        raise UsageError(f"--plot is {str(options['plot'])!r:.80}; the picture's name must end in .svg.")


def measured_limits(threads: int | None, kinds: tuple[str, ...]) -> Mapping[str, float]:
    """Bytes read a second, and operations a second in each of the number formats."""
    from herd.backends.cpu import limits
    from herd.bench.bounds import BANDWIDTH

    return {BANDWIDTH: limits.measure_bandwidth(threads)} | {kind: limits.measure_peak(kind, threads) for kind in kinds}


def _tell_limits(options: dict[str, Any]) -> None:
    import statistics

    from herd.backends.cpu.machine import make_machine
    from herd.bench.report import LIMIT_UNITS, Figure, machine, write_lines

    made = make_machine(options["threads"])
    kinds = ("int8", *(["bf16"] if made.multiplies_bf16 else []), "float32")
    with _telling() as told:
        rounds = []
        for number in range(options["rounds"]):
            told(f"round {number + 1} of {options['rounds']}")
            rounds.append(measured_limits(options["threads"], kinds))
    figures = [Figure(name, "", tuple(each[name] for each in rounds), LIMIT_UNITS.get(name, "operations/s")) for name in rounds[0]]
    facts: dict[str, Any] = {"machine": machine(), "threads": made.threads, "instruction_set": made.isa}
    if options["output"] is not None:
        write_lines(options["output"], figures, facts)
    if options["as_json"]:
        from herd.cli.output import print_json

        print_json({**facts, "limits": {name: statistics.median(each[name] for each in rounds) for name in rounds[0]},
                    "figures": [figure.data() for figure in figures]})  # fmt: skip
        return
    from herd.bench.report import shown

    click.echo(f"{facts['machine']['cpu']}, {made.threads} threads, {made.isa}")
    for figure in figures:
        low, high = (shown(each, figure.unit) for each in (min(figure.values), max(figure.values)))
        click.echo(f"  {figure.name:<16}{shown(figure.value, figure.unit):>12}   {low} to {high}")
    in_float32 = "float16 are" if made.multiplies_bf16 else "16 bits are"
    click.echo(f"Weights in {in_float32} multiplied in float32.")


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """One line on a terminal that says what is going on."""
    import sys

    from herd.cli.output import is_terminal

    if not is_terminal(sys.stderr):
        yield lambda text: None
        return
    try:
        yield lambda text: click.echo(f"\r\x1b[K{text} ...", nl=False, err=True)
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)


def _keep(options: dict[str, Any], figures: list[Figure], facts: Mapping[str, Any], bounds: Bounds, seen: Seen) -> None:
    """The files that were asked for."""
    import statistics

    from herd.bench.report import write_lines
    from herd.files import atomic_write

    if options["output"] is not None:
        write_lines(options["output"], figures, facts)
    if options["plot"] is not None:
        from herd.bench.roofline import roofline

        if not seen.limits:
            raise UsageError("A roofline needs the limits of the cpu backend; leave --backend out, or --plot.")
        medians = {name: statistics.median(values) for name, values in seen.limits.items()}
        with atomic_write(options["plot"]) as file:
            file.write(roofline(f"{facts['model']}, {facts['threads']} threads", figures, bounds, medians).encode())


def _tell(title: str, figures: list[Figure], facts: Mapping[str, Any], seen: Seen, as_json: bool) -> None:
    from herd.bench.report import rows_of
    from herd.cli.output import print_json, print_table

    if as_json:
        print_json({**facts, "notes": seen.notes, "figures": [figure.data() for figure in figures]})
        return
    click.echo(f"{title}  ({', '.join(seen.versions.values())})")
    print_table(["what", "engine", "median", "spread", "bound", "share"], rows_of(figures))
    for note in seen.notes:
        click.echo(f"note: {note}")
