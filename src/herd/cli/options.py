"""Options that several commands share, and help that leads with examples."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from herd.api import Model

F = TypeVar("F", bound=Callable[..., Any])

LOADING = (
    *("backend", "threads", "device", "tensor_parallel", "dtype", "activations", "adapter", "context", "draft", "mmproj", "chat_format"),
    "kv_cache",
)
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")


class Examples(click.Command):
    """A command whose help shows how it is used before what it takes."""

    def __init__(self, *args: Any, examples: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._examples = textwrap.dedent(examples).strip("\n").rstrip()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_help_text(ctx, formatter)
        if self._examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self._examples.splitlines()))
        formatter.write("\n")
        self.format_usage(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)


def _go_offline(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from herd.family.offline import go_offline

        go_offline()


def offline_option(function: F) -> F:
    """--offline, which every command takes."""
    return click.option(
        "--offline", is_flag=True, expose_value=False, callback=_go_offline, help="Nothing leaves this machine (also: HERD_OFFLINE=1)."
    )(function)


def _group(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


loading_options: Callable[[Any], Any] = _group(
    [
        click.option(
            "--backend", default="cpu", show_default=True, metavar="NAME", help="What computes: cpu, torch (GPUs too) or reference."
        ),
        click.option("--threads", type=int, metavar="N", help="Threads to use.  [default: one per core]"),
        click.option("--device", default="cpu", show_default=True, metavar="NAME", help="For torch: cpu, cuda or cuda:1."),
        click.option(
            "--tensor-parallel", type=int, metavar="N", help="For torch: divide the model over N GPUs of this machine.  [default: 1]"
        ),
        click.option("--dtype", metavar="NAME", help="Convert plain weights: float32, bfloat16, float16.  [default: as stored]"),
        click.option(
            "--activations", metavar="NAME", help="For quantised weights: int8 (fast, the default of cpu) or float32 (exact, of reference)."
        ),
        click.option(
            "--kv-cache", metavar="NAME", help="How keys and values are kept: float32, float16, int8, int4.  [default: float16 or float32]"
        ),
        click.option("--adapter", metavar="FOLDER", help="A LoRA adapter in PEFT's layout."),
        click.option("--context", type=int, metavar="N", help="Context length in tokens.  [default: the model's, if memory allows]"),
        click.option(
            "--draft",
            metavar="HOW",
            help="Try several tokens a step; answers stay the same: lookup (guessed from the text) or a smaller model.  [default: off]",
        ),
        click.option("--mmproj", metavar="FILE", help="A Llama 4's eyes in GGUF; off for none.  [default: what lies beside it]"),
        click.option("--chat-format", metavar="NAME", help="How it reads conversations, such as llama3.1.  [default: as its files say]"),
        offline_option,
    ]
)

sampling_options: Callable[[Any], Any] = _group(
    [
        click.option("-n", "--max-tokens", type=int, metavar="N", help="Longest answer.  [default: to the end of the context]"),
        click.option("-t", "--temperature", type=float, metavar="X", help="0 always takes the likeliest token.  [default: the model's]"),
        click.option("--top-k", type=int, metavar="N", help="Only the N likeliest tokens; 0 for all."),
        click.option("--top-p", type=float, metavar="X", help="The likeliest tokens that reach probability X together."),
        click.option("--min-p", type=float, metavar="X", help="Only tokens with at least this share of the likeliest one's probability."),
        click.option("--repetition-penalty", type=float, metavar="X", help="Above 1: what was said becomes less likely."),
        click.option("--presence-penalty", type=float, metavar="X", help="Taken off once for tokens of the answer so far."),
        click.option("--frequency-penalty", type=float, metavar="X", help="Taken off for each time a token was said."),
        click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. Can be repeated."),
    ]
)


holding_options: Callable[[Any], Any] = _group(
    [
        click.option("--json-schema", metavar="FILE", help="The answer is JSON of the schema in this file."),
        click.option("--regex", metavar="PATTERN", help="The whole answer matches this regular expression."),
        click.option(
            "--grammar", metavar="FILE", help="The answer is in the language of this file's grammar (Lark, as llguidance reads it)."
        ),
    ]
)


def held_to(options: dict[str, Any]) -> dict[str, Any] | None:
    """What the options of `holding_options` hold answers to. `UsageError` for two at once, and for a file that cannot be read."""
    from herd.errors import UsageError

    found = {name: options[name] for name in ("json_schema", "regex", "grammar") if options[name] is not None}
    if len(found) > 1:
        raise UsageError(f"{' and '.join('--' + name.replace('_', '-') for name in found)} both say what answers are held to; give one.")
    for name, value in found.items():
        if name == "regex":
            return {"type": "regex", "regex": readable(value, "--regex")}
        text = _text_of(value, f"--{name.replace('_', '-')}")
        return (
            {"type": "grammar", "grammar": text} if name == "grammar" else {"type": "json_schema", "json_schema": {"schema": _json(text)}}
        )
    return None


def _text_of(path: str, option: str) -> str:
    from pathlib import Path

    from herd.errors import UsageError

    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{option}: {path} cannot be read: {reason}.") from None


def _json(text: str) -> Any:
    import json

    from herd.errors import UsageError

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--json-schema: the file is no JSON: {str(error)[:200]}.") from None


def given(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the named options that the user gave."""
    return {name: options[name] for name in names if options.get(name) is not None}


def load_model(name: str, options: dict[str, Any]) -> Model:
    """The model, with a progress bar while it is fetched and a spinner while it is loaded, on a terminal."""
    from herd import api
    from herd.cli.output import fetching, spinning
    from herd.family.finding import find_model

    with fetching() as progress:
        find_model(name, progress=progress)
    with spinning(f"loading {name}"):
        return api.load(name, **given(options, LOADING))


def readable(prompt: str, what: str) -> str:
    """The text, if it is one. `UsageError` for bytes that are not UTF-8 (which Python hides in lone surrogates)."""
    from herd.errors import UsageError

    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not valid UTF-8 (at character {error.start}). Convert it, for example with iconv.") from error
    return prompt
