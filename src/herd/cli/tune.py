"""`herd tune`: a model learns from somebody's data."""

from __future__ import annotations

import click

from herd.cli.options import Examples, offline_option

COMMANDS = ("distill", "dpo", "grpo", "inspect", "kto", "list", "merge", "orpo", "reject", "reward", "sft", "show", "simpo")


class Tune(Examples, click.Group):
    """The group; a command's module is loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(cmd_name) or super().get_command(ctx, cmd_name)


@click.group(
    cls=Tune,
    short_help="Teach a model.",
    examples="""
    herd tune sft --model smollm2-135m-instruct --data faq.jsonl --lora     learn answers
    herd chat runs/faq                                                      talk to what came of it
    herd tune list                                                          which runs there are
    herd tune merge runs/faq ./faq-model                                    a model of its own
    """,
)
@offline_option
def tune() -> None:
    """Teach a model what its release did not know. Needs torch: pip install 'herd-llama[torch]'."""


def _command(name: str) -> click.Command | None:
    match name:
        case "inspect":
            from herd.cli.tune_inspect import inspect as found
        case "list":
            from herd.cli.tune_runs import list_runs as found
        case "merge":
            from herd.cli.tune_merge import merge as found
        case "sft":
            from herd.cli.tune_sft import sft as found
        case "show":
            from herd.cli.tune_runs import show_run as found
        case "distill":
            from herd.cli.tune_distill import distill as found
        case "dpo" | "kto" | "orpo" | "reward" | "simpo":
            from herd.cli import tune_preferences

            found = getattr(tune_preferences, name)
        case "grpo" | "reject":
            from herd.cli import tune_grpo

            found = getattr(tune_grpo, name)
        case _:
            return None
    return found
