"""`herd train upcycle`: a dense model gets experts, and says at first what it said before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from herd.cli.options import Examples, offline_option


@click.command(
    cls=Examples,
    short_help="Give a dense model experts.",
    examples="""
    herd train upcycle ./dense ./experts                        four experts in each layer
    herd train upcycle ./dense ./experts --experts 8 --every 2  eight in every second layer
    herd train pretrain --begin ./experts --data books/         and let them learn
    """,
)
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--experts", type=int, default=4, show_default=True, metavar="N", help="Experts in a layer, besides the shared one.")
@click.option("--chosen", type=int, default=1, show_default=True, metavar="N", help="Experts that a token goes to.")
@click.option("--every", type=int, default=1, show_default=True, metavar="N", help="The last of each so many layers gets experts.")
@click.option("--drawn", type=float, default=0.25, show_default=True, metavar="X", help="Share of each expert's rows that is drawn anew.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="What is drawn comes from.")
@offline_option
def upcycle(source: str, destination: Path, **options: Any) -> None:
    """Write the dense llama SOURCE (a model, or a finished run) as a Llama 4 with experts to the folder DESTINATION.

    The feed-forward of each layer becomes the shared expert; the routed ones add nothing until they have learned something, so that the
    logits are the same at first. Quantised matrices become float32.
    """
    from herd.checkpoints.learned import open_learned
    from herd.cli.output import fetching
    from herd.convert.trained import write_trained
    from herd.family.finding import find_model
    from herd.models.architecture import architecture_of
    from herd.planner.units import size
    from herd.training.beginning.upcycling import UpcyclingSettings, upcycled_config, upcycled_leaf

    settings = UpcyclingSettings(**options)
    with fetching() as progress:

        def place(named: str) -> Path:
            return find_model(named, progress=progress).path

        checkpoint = open_learned(place(source), place)
    try:
        cfg = upcycled_config(checkpoint.config, settings)
        leaf = upcycled_leaf(checkpoint.config, checkpoint.leaf, settings)
        made = write_trained(
            destination,
            cfg,
            {spec.name: leaf(spec.name) for spec in architecture_of(cfg).tensors(cfg)},
            tokenizer=checkpoint.tokenizer,
            chat_template=checkpoint.chat_template,
            stop_ids=checkpoint.stop_ids,
            beside=checkpoint.path,
        )
    finally:
        checkpoint.close()
    for note in made.notes:
        click.echo(note, err=True)
    click.echo(f"{size(made.num_bytes)} in {destination}. Let the experts learn: herd train pretrain --begin {destination} --data ...")
