"""`herd convert`: a model in another layout or number format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples, offline_option

if TYPE_CHECKING:
    from herd.convert import Report


@click.command(
    cls=Examples,
    short_help="Write a model in another layout.",
    examples="""
    herd convert ./Llama-3.2-1B llama.gguf --to gguf                    a folder as one file
    herd convert ./Llama-3.2-1B llama-q8.gguf --to gguf --quant q8_0    quantised
    herd convert ./model.gguf ./model --to hf --dtype bf16              a file as a Hugging Face folder
    herd convert ./original ./model --to hf                             Meta's download as a Hugging Face folder
    """,
)
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(["hf", "gguf", "meta"]), help="The layout to write.")
@click.option("--dtype", metavar="NAME", help="Number format of the weights: f32, f16, bf16.  [default: as stored]")
@click.option("--quant", metavar="NAME", help="Block format of the matrices, gguf only: q8_0, q6_k, q5_0, q4_0, q4_k, ...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def convert(source: str, destination: Path, to: str, dtype: str | None, quant: str | None, as_json: bool) -> None:
    """Write the model SOURCE to DESTINATION, a file for gguf and a folder otherwise.

    Weights that need no other number format keep their bits. Tokenizer, chat template, licence and notice files are carried
    along. The destination appears when it is whole; nothing is overwritten.
    """
    from herd.cli.output import fetching
    from herd.convert import convert as write

    with fetching() as progress:
        report = write(source, destination, to=to, dtype=dtype, quant=quant, progress=progress)
    print_report(report, as_json)


def print_report(report: Report, as_json: bool) -> None:
    """What was written, for people or programs."""
    from herd.cli.output import print_json
    from herd.planner.units import size

    if as_json:
        values: dict[str, Any] = {"path": str(report.path), "layout": report.layout, "tensors": report.num_tensors}
        print_json({**values, "bytes": report.num_bytes, "files": list(report.files), "notes": list(report.notes)})
        return
    click.echo(f"{report.path}: {report.num_tensors} tensors, {size(report.num_bytes)}")
    for note in report.notes:
        click.echo(f"note: {note}")
