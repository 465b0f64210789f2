"""What the commands of `herd tune` share: options, and what is said at a run's end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from herd.cli.options import offline_option
from herd.errors import UsageError

if TYPE_CHECKING:
    from herd.api.tuning_run import Conduct, Tuned
    from herd.data.account import Account
    from herd.training.settings.tuning import TuningSettings

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound="TuningSettings")
SHORT = 300
"""Letters of an answer that are shown."""


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def run_options(place: str = "in runs/", steps: str = "Steps of the run.", lr: str = "The peak learning rate.") -> Callable[[Any], Any]:
    """Of every run. place: where its folder is if nothing else is said."""
    return _all(
        click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help=f"The run's folder.  [default: {place}]"),
        click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="Settings of the run, as TOML."),
        click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="One setting, such as loop.clip=0.5. Can be repeated."),
        click.option("--resume", is_flag=True, help="Go on with the run in the folder, from its newest checkpoint."),
        click.option("--force", is_flag=True, help="With --resume: although settings or data have changed."),
        click.option("--seed", type=int, metavar="N", help="What everything that is drawn comes from.  [default: 0]"),
        click.option("--steps", type=int, metavar="N", help=steps),
        click.option("--lr", type=float, metavar="X", help=lr),
    )


chat_format_option = click.option("--chat-format", metavar="NAME", help="How conversations become tokens, for models that do not say.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
backend_option = click.option("--backend", metavar="NAME", help="What answers are drawn by: cpu or torch.  [default: cpu]")


def data_options(data: str, model: str = "What is tuned: a name, a .gguf file or a folder.") -> Callable[[Any], Any]:
    """Of every recipe: the model and what it learns from."""
    return _all(
        click.option("--model", metavar="NAME", help=model),
        click.option("--data", multiple=True, metavar="PATH", help=f"{data} Can be repeated."),
        chat_format_option,
        click.option(
            "--held-out", type=float, metavar="X", help="Measured and not learned: a share below 1, or how many.  [default: 0.05]"
        ),
        click.option(
            "--evaluate-every",
            type=int,
            metavar="N",
            help="Steps between two evaluations.  [default: only before the first and after the last]",
        ),
    )


def epoch_options(longest: str = "The longest example.  [default: 2048]", epochs: float = 1) -> Callable[[Any], Any]:
    """Of recipes over examples that are there before the run begins."""
    return _all(
        click.option("--max-tokens", type=int, metavar="N", help=longest),
        click.option("--epochs", type=float, metavar="X", help=f"How often each example is seen.  [default: {epochs:g}]"),
        click.option("--batch", type=int, metavar="N", help="Examples of a step.  [default: 8]"),
    )


def student_options(method: str = "full") -> Callable[[Any], Any]:
    """What of a model is learned; the last options of a command. method: which way to learn it takes if nothing is said."""
    return _all(
        click.option("--lora/--full", "is_lora", default=None, help=f"Learn low-rank updates, or every weight.  [default: {method}]"),
        click.option("--rank", type=int, metavar="N", help="With --lora: columns of each update.  [default: 16]"),
        click.option("--dora", is_flag=True, default=None, help="With --lora: learn the lengths of rows too."),
        click.option(
            "--base", metavar="FORMAT", help="With --lora: bring the frozen model into blocks first: q4_0, q4_k, q8_0, ... (QLoRA)."
        ),
        click.option("--qat", is_flag=True, default=None, help="Learn for four bits."),
        click.option("--dtype", metavar="NAME", help="What is computed in: float32, bfloat16.  [default: what is fast here]"),
        click.option("--device", metavar="NAME", help="cpu, cuda or cuda:1.  [default: cpu]"),
        click.option("--recompute", is_flag=True, default=None, help="Compute layers twice, in far less memory."),
        offline_option,
        json_option,
    )


NAMES: Mapping[str, str] = {
    **{name: name for name in ("model", "data", "chat_format", "held_out", "max_tokens", "epochs", "batch")},
    "evaluate_every": "loop.evaluate_every",
    "seed": "loop.seed",
    "steps": "loop.schedule.steps",
    "rank": "student.lora.rank",
    "dora": "student.lora.dora",
    "base": "student.base",
    "qat": "student.qat",
    "dtype": "student.dtype",
    "device": "student.device",
    "recompute": "student.recompute",
    "lr": "lr",
}


def named(options: Mapping[str, Any], names: Mapping[str, str] = NAMES) -> dict[str, Any]:
    """The options that were given, by the names of their settings."""
    found = {names[name]: value for name, value in options.items() if name in names and value not in (None, ())}
    if options.get("is_lora") is not None:
        found["student.method"] = "lora" if options["is_lora"] else "full"
    if "epochs" in options and options.get("steps") is not None:
        changes = {name.strip(): value.strip() for name, _, value in (each.partition("=") for each in options["changes"])}
        if float(options["epochs"] or 0) or changes.get("epochs", "0") not in ("0", "0.0"):
            raise UsageError("--steps and --epochs both say how long the run is; give one of them.", param="epochs")
        found["epochs"] = 0.0
    return found


def asked(kind: type[S], options: Mapping[str, Any], names: Mapping[str, str] = NAMES, **more: Any) -> tuple[S, Path]:
    """The settings that a command line asks for, `more` among them, and the run's folder: what was said, or a name after the data."""
    from herd.training.settings.reading import read_settings

    settings = read_settings(kind, options["file"], options["changes"], {**named(options, names), **more})
    if options["out"] is not None:
        return settings, options["out"]
    stem = Path((*settings.data, getattr(settings, "words", ""))[0]).name.split(".")[0]
    return settings, Path("runs") / (stem or "run")


def carry_out(command: str, tune: Callable[[S, Path, Conduct], Tuned], settings: S, folder: Path, options: Mapping[str, Any]) -> None:
    """Runs a recipe under the eyes of whoever typed the command, and says what came of it."""
    from herd.api.tuning_run import Conduct
    from herd.cli.output import fetching
    from herd.cli.watching import watching

    with fetching() as progress, watching(folder.name) as told:
        tuned = tune(settings, folder, Conduct(options["resume"], options["force"], told, _begun, progress))
    if tuned.is_first:
        _show(tuned, command, options["as_json"])


def _begun(settings: Any, account: Account, parameters: int) -> None:
    """What is learned from, and how long."""
    for line in account.lines():
        click.echo(line, err=True)
    schedule = settings.loop.schedule
    click.echo(f"{parameters:,} parameters, {schedule.steps:,} steps, learning rate {schedule.lr:g}", err=True)


def _show(tuned: Tuned, command: str, as_json: bool) -> None:
    """What the run came to: held-out figures and answers before and after, and where it is."""
    from herd.cli.output import print_json
    from herd.cli.watching import show_curve

    if as_json:
        answers = [{"prompt": each.prompt, "wanted": each.wanted, "before": each.before, "after": each.after} for each in tuned.answers]
        model = None if tuned.model is None else str(tuned.model)
        told = {"run": str(tuned.folder), "end": tuned.end.value, "model": model, "data": tuned.account.as_json()}
        print_json({**told, "held_out": dict(tuned.held_out), "answers": answers, "notes": list(tuned.notes)})
        return
    show_curve(tuned.folder)
    for name, value in tuned.held_out.items():
        if name != "tokens" and (before := tuned.held_out.get(f"before_{name}")) is not None:
            click.echo(f"held out {name}: {before:.4g} before, {value:.4g} after")
    for each in tuned.answers:
        click.echo(f"\n> {each.prompt}\n  before  {_short(each.before)}\n  after   {_short(each.after)}\n  wanted  {_short(each.wanted)}")
    for note in tuned.notes:
        click.echo(f"note: {note}")
    if tuned.model is None:
        click.echo(f"\nStopped. Go on with: herd tune {command} --config {tuned.folder}/config.toml --out {tuned.folder} --resume")
        return
    click.echo(f"\n{tuned.model}   curves: {tuned.curves}")
    if command != "reward":
        click.echo(f"Talk to it: herd chat {tuned.folder}")


def _short(text: str) -> str:
    """On one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= SHORT else flat[:SHORT] + " ..."
