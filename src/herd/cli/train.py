"""`herd train`: models from nothing, and what is needed for that."""

from __future__ import annotations

import click

from herd.cli.options import Examples

COMMANDS = ("pretrain", "scale", "tokenizer", "upcycle")


class Train(Examples, click.Group):
    """The group; the module of each command is loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        match cmd_name:
            case "pretrain":
                from herd.cli.train_pretrain import pretrain as found
            case "scale":
                from herd.cli.train_scale import scale as found
            case "tokenizer":
                from herd.cli.train_tokenizer import tokenizer as found
            case "upcycle":
                from herd.cli.train_upcycle import upcycle as found
            case _:
                return super().get_command(ctx, cmd_name)
        return found


@click.group(
    cls=Train,
    short_help="Train a model from nothing.",
    examples="""
    herd train scale --time 30min                                            how large, on how many tokens
    herd train pretrain --data books/ --tokenizer ./words --like llama-3.2-1b --width 256 --layers 4
    herd train upcycle ./dense ./experts --experts 8                         a dense model gets experts
    """,
)
def train() -> None:
    """Models from nothing: what fits a budget, the training itself, and dense models that get experts."""
