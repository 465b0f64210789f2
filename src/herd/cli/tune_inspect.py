"""`herd tune inspect`: what a run would learn from a data set, before it is begun. Loads no weight and needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples, offline_option

if TYPE_CHECKING:
    from herd.data.inspection import Inspection
    from herd.data.tokenising import Example, Tokenising

_STYLES: dict[str, dict[str, Any]] = {
    "read": {"dim": True},
    "learned": {"fg": "green", "bold": True},
    "ends": {"fg": "green", "reverse": True},
    "frame": {"fg": "blue"},
    "picture": {"fg": "magenta"},
}
_BAR = 40


@click.command(
    "inspect",
    cls=Examples,
    short_help="Show what would be learned from data.",
    examples="""
    herd tune inspect --model smollm2-135m-instruct --data faq.jsonl
    herd tune inspect --model ./model --data chats/ --max-tokens 2048 --near 0.8 --html seen.html
    herd tune inspect --model ./model --data pairs.jsonl.gz --json
    """,
)
@click.option("--model", required=True, metavar="MODEL", help="Whose tokens and chat format: a name, a file or a folder.")
@click.option("--data", required=True, multiple=True, metavar="PATH", help="A file or folder of data. Can be repeated.")
@click.option("--chat-format", metavar="NAME", help="How conversations are written, such as llama3.1.  [default: as the model's files say]")
@click.option("--shape", metavar="NAME", help="messages, sharegpt, alpaca, pairs, text, preference, judged or task.  [default: detected]")
@click.option("--learn", default="answers", show_default=True, metavar="WHAT", help="What carries loss: answers, last or all.")
@click.option("--max-tokens", type=int, metavar="N", help="The longest example.  [default: any length]")
@click.option("--too-long", default="drop", show_default=True, metavar="HOW", help="Longer ones: drop, cut, or split (plain text).")
@click.option("--near", type=float, metavar="X", help="Also count records that overlap by this share with an earlier one, 0.5 to 1.")
@click.option("--examples", default=3, show_default=True, metavar="N", help="How many to show.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Which ones are shown.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a page with every token of the examples."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@offline_option
def inspect(
    model: str,
    data: tuple[str, ...],
    chat_format: str | None,
    learn: str,
    html: Path | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Show which tokens of a data set would carry loss, how long its examples are, and what would be dropped and why."""
    from herd.data import inspection

    with _tokenising(model, chat_format, learn) as tokenising:
        found = inspection.inspect(data, tokenising, **choices)
        told = inspection.as_json(found, tokenising) if as_json else {}
        if html is not None:
            from herd.data.inspection_page import page
            from herd.files import atomic_write

            with atomic_write(html) as file:
                file.write(page(found, tokenising, model).encode())
        if as_json:
            from herd.cli.output import print_json

            print_json(told)
            return
        for line in _summary(found, tokenising, choices["max_tokens"]):
            click.echo(line)
        for group in found.shown:
            for line in _shown(group, tokenising, is_pair=found.account.shape == "preference"):
                click.echo(line)
        if html is not None:
            click.echo(f"\nwrote {html}")


@contextmanager
def _tokenising(model: str, wanted: str | None, learn: str) -> Iterator[Tokenising]:
    """The model's way from samples to ids; its files stay open as long as pictures may be asked for."""
    from herd.api.pictures import Eyes
    from herd.api.words import words_of
    from herd.checkpoints.open import open_checkpoint
    from herd.cli.output import fetching
    from herd.data.tokenising import Tokenising
    from herd.errors import UsageError
    from herd.family.finding import find_model

    with fetching() as progress:
        found = find_model(model, progress=progress)
    checkpoint = open_checkpoint(found.path)
    try:
        words = words_of(found, checkpoint, wanted)
        if words.tokenizer is None:
            raise UsageError(f"{found.name} has no tokenizer, so it cannot be said what texts are to it.")
        eyes = Eyes(found.name, checkpoint.config)
        yield Tokenising(words.tokenizer, words.chat_format, learn, tiles=eyes.tiles if eyes.can_see else None)
    finally:
        checkpoint.close()


def _summary(found: Inspection, tokenising: Tokenising, max_tokens: int | None) -> Iterator[str]:
    yield from found.account.lines()
    name = "none (a base model)" if tokenising.chat_format is None else tokenising.chat_format.name
    share = f"{found.num_learned / found.num_tokens:.1%}" if found.num_tokens else "0 %"
    yield f"chat format   {name}"
    yield f"examples      {len(found.lengths):,}"
    yield f"tokens        {found.num_tokens:,}, of which {found.num_learned:,} carry loss ({share})"
    yield "lengths       " + ", ".join(f"{_named(at)} {length:,}" for at, length in found.quantiles.items())
    near = "" if found.near is None else f", {found.near:,} nearly"
    yield f"duplicates    {found.exact:,} exactly{near}"
    if max_tokens is not None:
        packing = found.packed(max_tokens)
        yield f"packed        {len(packing.epoch(0)):,} rows of {max_tokens:,} tokens, {packing.fill:.1%} full"
    yield f"sha256        {found.sha256}"
    yield ""
    most = max((count for _, _, count in found.histogram()), default=1)
    for begin, end, count in found.histogram():
        yield f"{begin:>8,} to {end - 1:>8,} tokens  {'#' * -(-count * _BAR // most):{_BAR}}  {count:,}"


def _named(share: int) -> str:
    return {0: "shortest", 50: "median", 100: "longest"}.get(share, f"{share} %")


def _shown(group: tuple[Example, ...], tokenising: Tokenising, *, is_pair: bool) -> Iterator[str]:
    """Examples as text: what carries loss in colour, or between marks where there are no colours."""
    import sys

    from herd.cli.output import is_terminal
    from herd.data.inspection import runs

    is_coloured = is_terminal(sys.stdout)
    names = ("chosen", "rejected") if is_pair else ("",) * len(group)
    for name, example in zip(names, group, strict=True):
        yield ""
        title = f"{example.place}  {name}".rstrip()
        yield f"{title}  ({len(example.tokens):,} tokens, {example.num_learned:,} with loss)"
        pieces = []
        for run in runs(example, tokenising):
            text = _printable(run.text)
            weight = "" if run.weight in (0, 1) else f"{run.weight:g}*"
            is_learned = run.weight != 0
            if is_coloured:
                text = "\n".join(click.style(line, **_STYLES[run.kind]) for line in text.split("\n"))
            pieces.append(f"{weight}«{text}»" if is_learned and not is_coloured else f"{weight}{text}")
        yield "".join(pieces).replace("»«", "")


def _printable(text: str) -> str:
    """A terminal gets no control characters from data."""
    return "".join(sign if sign in "\n\t" or sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
