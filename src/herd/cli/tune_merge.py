"""`herd tune merge`: an adapter and its base as one model."""

from __future__ import annotations

from pathlib import Path

import click

from herd.cli.options import Examples, offline_option


@click.command(
    cls=Examples,
    short_help="Put an adapter and its model together.",
    examples="""
    herd tune merge runs/faq ./faq-model                    a Hugging Face folder
    herd tune merge runs/faq faq.gguf --to gguf             a GGUF file
    herd tune merge runs/faq faq.gguf --to gguf --quant q8_0
    """,
)
@click.argument("run")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--to", default="hf", show_default=True, type=click.Choice(["hf", "gguf", "meta"]), help="The layout to write.")
@click.option("--dtype", metavar="NAME", help="Number format of the weights: f32, f16, bf16.  [default: as the base's]")
@click.option("--quant", metavar="NAME", help="Block format of the matrices, gguf only: q8_0, q6_k, q4_0, ...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def merge(run: str, destination: Path, to: str, dtype: str | None, quant: str | None, as_json: bool) -> None:
    """Write what the RUN (or an adapter's folder) has learned, together with its base, to DESTINATION: a model of its own."""
    from herd.checkpoints.trained import trained_in
    from herd.cli.convert import print_report
    from herd.cli.output import fetching
    from herd.convert import convert as write
    from herd.errors import UsageError

    found = trained_in(Path(run))
    if found is None or found.adapter is None:
        raise UsageError(f"{run} holds no adapter, so there is nothing to merge. Models are written anew by herd convert.")
    with fetching() as progress:
        report = write(run, destination, to=to, dtype=dtype, quant=quant, progress=progress)
    print_report(report, as_json)
