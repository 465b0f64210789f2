"""`herd quantize`: a model in fewer bits, and what that cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples, offline_option
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.cli.quality import Quality
    from herd.convert import Quantised


@click.command(
    cls=Examples,
    short_help="Write a model in fewer bits.",
    examples="""
    herd quantize ./Llama-3.2-1B llama-q4.gguf --format q4_k                       a format for all matrices
    herd quantize ./Llama-3.2-1B llama-q4.gguf --format q4_k --importance text.txt   errors weighed by a text
    herd quantize ./Llama-3.2-1B llama.gguf --bits 4.25 --importance text.txt      the best formats for a size
    herd quantize ./Llama-3.2-1B ./Llama-3.2-1B-int4 --format int4                 as Meta's own int4 releases, a folder
    herd quantize ./Llama-3.2-1B llama-q4.gguf --format q4_k --report book.txt --plot cost.svg
    """,
)
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--format", "format_name", metavar="NAME", help="q4_0, q4_1, q5_0, q5_1, q8_0, q2_k to q6_k, iq4_nl, iq4_xs, or Meta's int4.")
@click.option("--bits", type=float, metavar="X", help="Instead of a format: bits per weight of the file. Needs --importance.")
@click.option("--head", metavar="NAME", help="Format of the output matrix.  [default: q6_k, or the nearest that fits]")
@click.option("--importance", type=click.Path(path_type=Path), metavar="FILE", help="A text of the kind that the model is for.")
@click.option("--max-tokens", type=int, default=16384, show_default=True, metavar="N", help="Tokens of that text that are read.")
@click.option("--threads", type=int, metavar="N", help="Threads to use.  [default: one per core]")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Measure source and result on another text.")
@click.option("--report-tokens", type=int, default=4096, show_default=True, metavar="N", help="Tokens of that text.")
@click.option("--beside", multiple=True, metavar="MODEL", help="For the report: another quantised file. Can be repeated.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="The report as a picture, .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def quantize(source: str, destination: Path, **options: Any) -> None:
    """Write the model SOURCE to the GGUF file DESTINATION with its matrices in blocks of few bits (for int4: a folder in Meta's layout).

    Every scale is searched for. With --importance an error counts by what that text makes it multiply. An interrupted run goes on
    where it was when it is called again; nothing is overwritten. Best from weights of 16 or 32 bits.
    """
    from herd.cli.output import fetching
    from herd.cli.quality import measure, plot
    from herd.convert import quantise
    from herd.files.text import read_text

    _check(options)
    text = None if options["importance"] is None else read_text(options["importance"])
    judged = None if options["report"] is None else read_text(options["report"])
    if options["threads"] is not None and options["threads"] < 1:
        raise UsageError(f"--threads is {options['threads']}; it must be at least 1.")
    settings = {name: options[name] for name in ("head", "bits", "max_tokens", "threads")}
    with fetching() as progress:
        made = quantise(source, destination, format=options["format_name"], importance=text, progress=progress, **settings)
    rows = [] if judged is None else measure(source, [str(destination), *options["beside"]], judged, options["report_tokens"])
    if options["plot"] is not None:
        plot(rows, options["plot"])
    _print(made, rows, options["as_json"])


def _check(options: dict[str, Any]) -> None:
    """`UsageError` before any work for options that make no sense together."""
    if options["report"] is None and (options["plot"] is not None or options["beside"]):
        raise UsageError("--plot and --beside show what --report measures; give it a text file.")
    if options["plot"] is not None and options["plot"].suffix != ".svg":
        raise UsageError(f"--plot is {str(options['plot'])!r:.80}; the picture's name must end in .svg.")
    if options["plot"] is not None and not options["plot"].parent.is_dir():
        raise UsageError(f"{options['plot'].parent} is no folder; make it first.")
    if options["report_tokens"] < 2:
        raise UsageError(f"--report-tokens is {options['report_tokens']}; at least 2 are needed.")


def _print(made: Quantised, rows: list[Quality], as_json: bool) -> None:
    from dataclasses import asdict

    from herd.cli.output import print_json, print_table
    from herd.planner.units import size

    if as_json:
        values: dict[str, Any] = {"path": str(made.path), "tensors": made.num_tensors, "bytes": made.num_bytes, "bits": made.bits}
        values |= {"formats": dict(made.formats), "notes": list(made.notes), "report": [asdict(row) for row in rows]}
        print_json(values)
        return
    counts = {name: list(made.formats.values()).count(name) for name in sorted(set(made.formats.values()))}
    chosen = ", ".join(f"{count} in {name}" for name, count in counts.items())
    click.echo(f"{made.path}: {size(made.num_bytes)}, {made.bits:.2f} bits per weight; matrices: {chosen}")
    for note in made.notes:
        click.echo(f"note: {note}")
    if rows:
        print_table(["model", "size", "bits", "tokens/s", "perplexity", "KL", "same choice"], [_cells(row) for row in rows])


def _cells(row: Quality) -> list[str]:
    from herd.planner.units import size

    kl = "" if row.kl is None else f"{row.kl:.5f} ± {row.kl_error:.5f}"
    same = "" if row.agreement is None else f"{row.agreement:.2%}"
    return [row.name, size(row.num_bytes), f"{row.bits:.2f}", f"{row.tokens_per_s:.1f}", f"{row.perplexity:.4f}", kl, same]
