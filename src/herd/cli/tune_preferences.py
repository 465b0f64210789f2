"""`herd tune dpo`, `simpo`, `kto`, `orpo` and `reward`: learning which answers are better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples
from herd.cli.tune_options import NAMES, named, place_of, run_options, student_options, watching

if TYPE_CHECKING:
    from herd.api.tuning_preferences import Aligned
    from herd.data.account import Account

SHARED = ("model", "data", "chat_format", "held_out", "max_tokens", "epochs", "batch")
OWN = {**NAMES, **{name: name for name in SHARED}, "evaluate_every": "loop.evaluate_every"}
LOSS = {name: f"loss.{name}" for name in ("beta", "nll", "formatting", "label_smoothing", "gamma", "desirable", "undesirable")}


def pair_options(records: str) -> Callable[[Any], Any]:
    """Options of every command over pairs or judged answers."""

    def add(function: Any) -> Any:
        for option in reversed(
            (
                click.option("--model", metavar="NAME", help="What is tuned: a name, a .gguf file or a folder."),
                click.option("--data", multiple=True, metavar="PATH", help=f"Records with {records}, as JSONL. Can be repeated."),
                click.option("--chat-format", metavar="NAME", help="How conversations become tokens, for models that do not say."),
                click.option(
                    "--held-out", type=float, metavar="X", help="Measured and not learned: a share below 1, or how many.  [default: 0.05]"
                ),
                click.option("--max-tokens", type=int, metavar="N", help="The longest answer with its prompt.  [default: 2048]"),
                click.option("--epochs", type=float, metavar="X", help="How often each record is seen.  [default: 1]"),
                click.option("--batch", type=int, metavar="N", help="Records of a step.  [default: 8]"),
                click.option(
                    "--evaluate-every", type=int, metavar="N", help="Steps between two evaluations.  [default: only before and after]"
                ),
            )
        ):
            function = option(function)
        return run_options(student_options(click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)))

    return add


@click.command(
    cls=Examples,
    short_help="Learn which of two answers is better.",
    examples="""
    herd tune dpo --model smollm2-135m-instruct --data pairs.jsonl          with the settings of Llama 3
    herd tune dpo --model runs/faq --data pairs.jsonl --beta 0.05 --nll 0   other numbers
    herd chat runs/pairs                                                    talk to the result
    """,
)
@pair_options("prompt, chosen and rejected")
@click.option("--beta", type=float, metavar="X", help="How firmly the model is held to where it started.  [default: 0.1]")
@click.option("--nll", type=float, metavar="X", help="Weight of the chosen answer's own loss.  [default: 0.2]")
@click.option("--formatting/--no-formatting", default=None, help="Whether control tokens of answers count.  [default: they do not]")
@click.option("--label-smoothing", type=float, metavar="X", help="Share of pairs that may be the wrong way round.  [default: 0]")
def dpo(**options: Any) -> None:
    """Direct preference optimisation, as Llama 3 used it: with a part of the chosen answer's own loss, and without control tokens."""
    _tune("dpo", **options)


@click.command(
    cls=Examples,
    short_help="Learn which of two answers is better, without a reference.",
    examples="herd tune simpo --model smollm2-135m-instruct --data pairs.jsonl --gamma 0.5",
)
@pair_options("prompt, chosen and rejected")
@click.option("--beta", type=float, metavar="X", help="How much a difference of means counts.  [default: 2]")
@click.option("--gamma", type=float, metavar="X", help="By how much a chosen answer has to be better.  [default: 0.5]")
@click.option("--formatting/--no-formatting", default=None, help="Whether control tokens of answers count.  [default: they do not]")
@click.option("--label-smoothing", type=float, metavar="X", help="Share of pairs that may be the wrong way round.  [default: 0]")
def simpo(**options: Any) -> None:
    """SimPO: answers are compared by their mean log-probability; no model as it was is needed."""
    _tune("simpo", **options)


@click.command(
    cls=Examples,
    short_help="Learn from single answers that are good or bad.",
    examples="herd tune kto --model smollm2-135m-instruct --data judged.jsonl",
)
@pair_options("prompt, completion and label")
@click.option("--beta", type=float, metavar="X", help="How firmly the model is held to where it started.  [default: 0.1]")
@click.option("--desirable", type=float, metavar="X", help="Weight of good answers.  [default: 1]")
@click.option("--undesirable", type=float, metavar="X", help="Weight of bad answers.  [default: 1]")
@click.option("--formatting/--no-formatting", default=None, help="Whether control tokens of answers count.  [default: they do not]")
def kto(**options: Any) -> None:
    """Kahneman-Tversky optimisation: answers need no partner, only a judgement."""
    _tune("kto", **options)


@click.command(
    cls=Examples,
    short_help="Learn answers and preferences at once.",
    examples="herd tune orpo --model smollm2-135m-instruct --data pairs.jsonl",
)
@pair_options("prompt, chosen and rejected")
@click.option("--beta", type=float, metavar="X", help="Weight of the odds beside the chosen answer's own loss.  [default: 0.1]")
@click.option("--formatting/--no-formatting", default=None, help="Whether control tokens of answers count.  [default: they do not]")
def orpo(**options: Any) -> None:
    """ORPO: the chosen answer's own loss and the odds of chosen to rejected, without a reference."""
    _tune("orpo", **options)


@click.command(
    cls=Examples,
    short_help="Make a model that judges answers.",
    examples="herd tune reward --model smollm2-135m-instruct --data pairs.jsonl --out runs/judge",
)
@pair_options("prompt, chosen and rejected")
def reward(out: Path | None, file: Path | None, changes: tuple[str, ...], resume: bool, force: bool, as_json: bool, **options: Any) -> None:
    """A reward model: one number for each answer, so that the better ones have the larger."""
    from herd.cli.output import fetching
    from herd.training.reward_settings import RewardModelSettings
    from herd.training.settings import read_settings

    settings = read_settings(RewardModelSettings, file, changes, named(options, OWN))
    folder = place_of(out, settings.data)
    from herd.api.tuning_preferences import tune_reward

    with fetching() as progress, watching(folder.name) as told:
        found = tune_reward(settings, folder, resume=resume, force=force, told=told, began=begun, progress=progress)
    show(found, "reward", as_json)


def _tune(
    method: str,
    out: Path | None,
    file: Path | None,
    changes: tuple[str, ...],
    resume: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    from herd.cli.output import fetching
    from herd.training.preference_settings import PreferenceSettings
    from herd.training.settings import read_settings

    given = {**named(options, {**OWN, **LOSS}), "loss.method": method}
    settings = read_settings(PreferenceSettings, file, changes, given)
    folder = place_of(out, settings.data)
    from herd.api.tuning_preferences import tune_preferences

    with fetching() as progress, watching(folder.name) as told:
        found = tune_preferences(settings, folder, resume=resume, force=force, told=told, began=begun, progress=progress)
    show(found, method, as_json)


def begun(settings: Any, account: Account, parameters: int) -> None:
    """What is learned from, and how long."""
    for line in account.lines():
        click.echo(line, err=True)
    schedule = settings.loop.schedule
    click.echo(f"{parameters:,} parameters, {schedule.steps:,} steps, learning rate {schedule.lr:g}", err=True)


def show(found: Aligned, command: str, as_json: bool) -> None:
    """What the run came to: held-out figures before and after, and where it is."""
    from herd.cli.output import print_json
    from herd.training.curves import in_dots, panels, series_of

    if as_json:
        model = None if found.model is None else str(found.model)
        told = {"run": str(found.folder), "end": found.end.value, "model": model, "data": found.account.as_json()}
        print_json({**told, "held_out": found.held_out})
        return
    for name, steps, held_out in panels(series_of(found.folder))[:1]:
        click.echo(in_dots(name, steps, held_out))
    for name, value in found.held_out.items():
        if (before := found.held_out.get(f"before_{name}")) is not None:
            click.echo(f"held out {name}: {before:.4g} before, {value:.4g} after")
    if found.model is None:
        click.echo(f"Stopped. Go on with: herd tune {command} --config {found.folder}/config.toml --out {found.folder} --resume")
    elif command != "reward":
        click.echo(f"{found.model}   curves: {found.curves}\nTalk to it: herd chat {found.folder}")
    else:
        click.echo(f"{found.model}   curves: {found.curves}")
