"""The command `herd`: its commands, and what becomes of errors.

Exit codes: 0 done · 1 a bug of ours · 2 usage · 3 a file · 4 memory or disk · 5 somebody else's service · 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from herd.cli.options import Examples, offline_option
from herd.errors import CapacityError, HerdError

INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY = 4
COMMANDS = frozenset(
    (
        "bench",
        "chat",
        "convert",
        "eval",
        "keys",
        "licence",
        "models",
        "plan",
        "pull",
        "quantize",
        "remove",
        "run",
        "serve",
        "show",
        "train",
        "tune",
        "verify",
    )
)


class Herd(Examples, click.Group):
    """The group of all commands; an error becomes one line on stderr and the exit code of its kind."""

    def main(  # type: ignore[override]  # click declares two overloads, of which this is the union
        self, args: Sequence[str] | None = None, prog_name: str | None = None, standalone_mode: bool = True, **settings: Any
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **settings)
        sys.exit(self._outcome(args, prog_name, settings))

    def _outcome(self, args: Sequence[str] | None, prog_name: str | None, settings: Mapping[str, Any]) -> int:
        """Runs the command; its exit code."""
        _make_printable()
        try:
            result = super().main(args, prog_name, standalone_mode=False, **settings)
            sys.stdout.flush()
        except HerdError as error:
            return _refuse(str(error), error.exit_code)
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            click.echo("", err=True)
            return INTERRUPTED
        except BrokenPipeError:
            _close_pipe()
            return 0
        except MemoryError:
            return _refuse("There is not enough memory. Try a smaller model, or a smaller --context.", OUT_OF_MEMORY)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                _close_pipe()
                return _refuse("There is no room left where the output goes. Make room, or write elsewhere.", CapacityError.exit_code)
            if os.environ.get("HERD_DEBUG"):
                raise
            return _refuse(f"herd met a bug: {type(error).__name__}: {error}. Set HERD_DEBUG=1 for the traceback, and please report it.", 1)
        return result if isinstance(result, int) else 0

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; its module is loaded when it is asked for."""
        return _command(cmd_name) or super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. A reader that left early (`| head`) is found here, before click makes a failure of it."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _close_pipe()
            return 0
        return result


def _refuse(message: str, code: int) -> int:
    click.echo(f"Error: {message}", err=True)
    return code


def _close_pipe() -> None:
    """Nobody reads our output any more; what is still buffered goes nowhere instead of into another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _make_printable() -> None:
    """What a stream cannot show gets a replacement, not a crash. UTF-8 has no lone surrogates, and names of files may."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=errors)


def _show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        import herd

        click.echo(f"herd {herd.__version__}")
        context.exit()


@click.group(
    cls=Herd,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    examples="""
    herd chat                                     talk to a small model (fetched once, 98 MB)
    herd run smollm2-135m-instruct "Once upon"    continue a text
    cat notes.txt | herd run ./model.gguf         the text from a pipe
    herd pull llama-3.2-1b-instruct               fetch a model of Meta's
    herd models                                   what is known, and what is here
    """,
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version and exit.")
@offline_option
def main() -> None:
    """Run the Llama family on this computer."""


def _command(name: str) -> click.Command | None:
    match name:
        case "bench":
            from herd.cli.bench import bench as found
        case "chat":
            from herd.cli.chat import chat as found
        case "eval":
            from herd.cli.eval import evaluate as found
        case "keys":
            from herd.cli.keys import keys as found
        case "licence":
            from herd.cli.licence import licence as found
        case "models":
            from herd.cli.models import models as found
        case "plan":
            from herd.cli.plan import plan as found
        case "pull":
            from herd.cli.models import pull as found
        case "quantize":
            from herd.cli.quantize import quantize as found
        case "remove":
            from herd.cli.models import remove as found
        case "run":
            from herd.cli.run import run as found
        case "train":
            from herd.cli.train import train as found
        case "tune":
            from herd.cli.tune import tune as found
        case "convert":
            from herd.cli.convert import convert as found
        case "verify":
            from herd.cli.verify import verify as found
        case "serve":
            from herd.cli.serve import serve as found
        case "show":
            from herd.cli.show import show as found
        case _:
            return None
    return found
