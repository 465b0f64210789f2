"""`herd train tokenizer`: a vocabulary of one's own, from one's own data."""

from __future__ import annotations

from pathlib import Path

import click

from herd.cli.options import Examples, offline_option


@click.command(
    "tokenizer",
    cls=Examples,
    short_help="Learn a vocabulary from data.",
    examples="""
    herd train tokenizer --data books/ --size 8192 --out ./words
    herd train tokenizer --data chats.jsonl.gz --data books/ --size 32000 --manner llama4 --out ./words
    """,
)
@click.option("--data", required=True, multiple=True, metavar="PATH", help="A file or folder of data, of any shape. Can be repeated.")
@click.option("--size", type=int, required=True, metavar="N", help="How many tokens, control tokens included.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER", help="Where to write it.")
@click.option(
    "--manner", default="llama3", show_default=True, metavar="NAME", help="How text is cut, and which control tokens: llama3, llama4."
)
@click.option("--special", multiple=True, metavar="NAME", help="A control token besides those. Can be repeated.")
@click.option("--shape", metavar="NAME", help="The data's shape, such as text or messages.  [default: detected]")
@click.option("--force", is_flag=True, help="Replace a vocabulary that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def tokenizer(
    data: tuple[str, ...], size: int, out: Path, manner: str, special: tuple[str, ...], shape: str | None, force: bool, as_json: bool
) -> None:
    """Learn a byte-level BPE vocabulary. Its folder loads with herd and with transformers."""
    from herd.cli.output import print_json, spinning
    from herd.data.account import Account
    from herd.data.dedup import text_of
    from herd.data.shapes import read_samples
    from herd.data.tokenizer_training import train_tokenizer

    account = Account()
    with spinning("counting pieces of words"):
        texts = (text_of(sample) for sample in read_samples(data, account, shape=shape))
        trained = train_tokenizer(texts, size, out, manner=manner, more=special, replace=force)
    if as_json:
        print_json(
            {
                "folder": str(trained.folder),
                "size": trained.size,
                "merges": trained.num_merges,
                "control_tokens": trained.num_controls,
                "characters": trained.num_characters,
                "bytes_per_token": trained.bytes_per_token,
                "data": account.as_json(),
            }
        )
        return
    for line in account.lines():
        click.echo(line)
    click.echo(
        f"wrote {trained.folder}: {trained.size:,} tokens (256 bytes, {trained.num_merges:,} merges, {trained.num_controls} control)"
    )
    click.echo(f"{trained.num_characters:,} characters read; {trained.bytes_per_token:.2f} bytes a token at the beginning of the data")
