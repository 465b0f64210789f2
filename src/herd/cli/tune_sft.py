"""`herd tune sft`: supervised fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples
from herd.cli.tune_options import NAMES, named, place_of, run_options, student_options, watching

if TYPE_CHECKING:
    from herd.api.tuning_sft import Tuned
    from herd.data.account import Account
    from herd.training.sft_settings import SftSettings

OWN = {
    **NAMES,
    "model": "model",
    "data": "data",
    "shape": "shape",
    "chat_format": "chat_format",
    "learn": "learn",
    "held_out": "held_out",
    "max_tokens": "max_tokens",
    "epochs": "epochs",
    "batch": "batch",
    "evaluate_every": "loop.evaluate_every",
}


@click.command(
    cls=Examples,
    short_help="Learn the answers of conversations.",
    examples="""
    herd tune sft --model smollm2-135m-instruct --data faq.jsonl --lora       learn from a file, into runs/faq
    herd chat runs/faq                                                        talk to the result
    herd tune sft --model ./model --data chats/ --out runs/chats --epochs 2   every weight, from a folder
    herd tune sft --model ./model --data a.jsonl --lora --base q4_0           over a base of four bits
    herd tune sft --config runs/faq/config.toml --out runs/faq --resume       go on where it was stopped
    """,
)
@click.option("--model", metavar="NAME", help="What is tuned: a name, a .gguf file or a folder.")
@click.option(
    "--data", multiple=True, metavar="PATH", help="Conversations as JSONL (OpenAI's, ShareGPT's or Alpaca's way), or text. Can be repeated."
)
@click.option("--shape", metavar="NAME", help="How records are written, where that is not to be detected.")
@click.option("--chat-format", metavar="NAME", help="How conversations become tokens, for models that do not say.")
@click.option("--learn", metavar="WHAT", help="What carries loss: answers, last or all.  [default: answers]")
@click.option("--held-out", type=float, metavar="X", help="Measured and not learned: a share below 1, or how many.  [default: 0.05]")
@click.option("--max-tokens", type=int, metavar="N", help="The longest example.  [default: 2048]")
@click.option("--epochs", type=float, metavar="X", help="How often each example is seen.  [default: 3]")
@click.option("--batch", type=int, metavar="N", help="Examples of a step.  [default: 8]")
@click.option("--evaluate-every", type=int, metavar="N", help="Steps between two evaluations.  [default: only before and after]")
@run_options
@student_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def sft(out: Path | None, file: Path | None, changes: tuple[str, ...], resume: bool, force: bool, as_json: bool, **options: Any) -> None:
    """Learn the answers of conversations, into the folder of a run that `herd chat` takes at once."""
    from herd.cli.output import fetching
    from herd.training.settings import read_settings
    from herd.training.sft_settings import SftSettings

    settings = read_settings(SftSettings, file, changes, named(options, OWN))
    folder = place_of(out, settings.data)
    from herd.api.tuning_sft import tune_sft

    with fetching() as progress, watching(folder.name) as told:
        tuned = tune_sft(settings, folder, resume=resume, force=force, told=told, began=_begun, progress=progress)
    if tuned.is_first:
        _print(tuned, as_json)


def _begun(settings: SftSettings, account: Account, parameters: int) -> None:
    for line in account.lines():
        click.echo(line, err=True)
    schedule = settings.loop.schedule
    click.echo(f"{parameters:,} parameters, {schedule.steps:,} steps of {settings.batch} examples, learning rate {schedule.lr:g}", err=True)


def _print(tuned: Tuned, as_json: bool) -> None:
    from herd.cli.output import print_json
    from herd.training.curves import in_dots, panels, series_of

    if as_json:
        answers = [{"prompt": each.prompt, "wanted": each.wanted, "before": each.before, "after": each.after} for each in tuned.answers]
        model = None if tuned.model is None else str(tuned.model)
        print_json({"run": str(tuned.folder), "end": tuned.end.value, "model": model, "data": tuned.account.as_json(), "answers": answers})
        return
    for name, steps, held_out in panels(series_of(tuned.folder))[:1]:
        click.echo(in_dots(name, steps, held_out))
    for each in tuned.answers:
        click.echo(f"\n> {each.prompt}\n  before  {_short(each.before)}\n  after   {_short(each.after)}\n  wanted  {_short(each.wanted)}")
    if tuned.model is None:
        click.echo(f"\nStopped. Go on with: herd tune sft --config {tuned.folder}/config.toml --out {tuned.folder} --resume")
    else:
        click.echo(f"\n{tuned.model}   curves: {tuned.curves}\nTalk to it: herd chat {tuned.folder}")


def _short(text: str, most: int = 300) -> str:
    """On one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[:most] + " ..."
