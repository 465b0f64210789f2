"""`herd tune grpo` and `herd tune reject`: answers that a program can judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from herd.cli.options import Examples, offline_option
from herd.cli.tune_options import (
    NAMES,
    asked,
    backend_option,
    carry_out,
    chat_format_option,
    data_options,
    json_option,
    named,
    run_options,
    student_options,
)

OWN = {
    **NAMES,
    **{name: name for name in ("steps", "backend")},
    **{name: f"rollouts.{name}" for name in ("prompts", "answers", "max_tokens", "temperature")},
}
KINDS = ("number", "text", "tests", "schema", "length", "pattern")
REWARDS = f"{', '.join(KINDS)}, FILE.py:NAME, or the folder of a run of herd tune reward"


def drawing_options(longest: int) -> Callable[[Any], Any]:
    """How answers are drawn."""

    def add(function: Any) -> Any:
        function = click.option("--temperature", type=float, metavar="X", help="Of drawing.  [default: 1]")(backend_option(function))
        return click.option("--max-tokens", type=int, metavar="N", help=f"The longest answer.  [default: {longest}]")(function)

    return add


@click.command(
    cls=Examples,
    short_help="Learn from rewards of programs or of a model that judges.",
    examples="""
    herd tune grpo --model smollm2-135m-instruct --data sums.jsonl                         {"prompt": "2 + 3?", "answer": 5} on each line
    herd tune grpo --model smollm2-135m-instruct --data code.jsonl --reward tests          {"prompt": ..., "tests": "assert ..."}
    herd tune grpo --model smollm2-135m-instruct --data p.jsonl --reward mine.py:score     def score(answer, task): return 0.5
    herd tune grpo --model smollm2-135m-instruct --data p.jsonl --reward runs/judge        a model that herd tune reward has made
    herd tune grpo --model smollm2-135m-instruct --data sums.jsonl --variant dr_grpo       as another paper has it
    """,
)
@data_options("Prompts with what answers are checked by, as JSONL.")
@click.option("--reward", "rewards", multiple=True, metavar="KIND", help=f"{REWARDS}. Added up.  [number]")
@click.option("--variant", metavar="NAME", help="Loss of a paper: grpo, dr_grpo or dapo.  [default: dapo]")
@click.option("--prompts", type=int, metavar="N", help="Prompts of a step.  [default: 4]")
@click.option("--answers", type=int, metavar="N", help="Answers to each.  [default: 8]")
@drawing_options(256)
@run_options()
@student_options("lora")
def grpo(rewards: tuple[str, ...], variant: str | None, **options: Any) -> None:
    """Online reinforcement learning: the model answers prompts, a program or a reward model judges, and answers that beat their
    neighbours become likelier.

    How far the engine's probabilities are from the trainer's is measured at every step and logged as gap and gap_most.
    """
    from herd.training.settings.grpo import GrpoSettings
    from herd.training.settings.grpo import variant as loss_of

    given: dict[str, Any] = {"rewards": [reward_of(each) for each in rewards]} if rewards else {}
    if variant is not None:
        loss = loss_of(variant)
        given |= {f"loss.{name}": getattr(loss, name) for name in ("scale", "over", "clip_low", "clip_high", "kl")}
    settings, folder = asked(GrpoSettings, options, OWN, **given)
    from herd.api.tuning_grpo import tune_grpo

    carry_out("grpo", tune_grpo, settings, folder, options)


@click.command(
    cls=Examples,
    short_help="Write down the best of several answers.",
    examples="""
    herd tune reject --model smollm2-135m-instruct --data sums.jsonl --reward number --out good.jsonl    the right ones of 8
    herd tune reject --model smollm2-135m-instruct --data p.jsonl --reward runs/judge --out best.jsonl   the one that a model likes best
    herd tune reject --model teacher --data prompts.jsonl --answers 1 --out made.jsonl                   answers of a teacher
    herd tune sft --model smollm2-135m-instruct --data good.jsonl --lora                                 learn them
    """,
)
@click.option("--model", metavar="NAME", help="Who answers: a name, a .gguf file or a folder.")
@click.option("--data", multiple=True, metavar="PATH", help="Prompts, with what answers are checked by where there are rewards.")
@click.option("--reward", "rewards", multiple=True, metavar="KIND", help=f"{REWARDS}.  [none: one answer is worth as much as another]")
@click.option("--answers", type=int, metavar="N", help="Answers to each prompt.  [default: 8]")
@click.option("--keep", type=int, metavar="N", help="How many of them are kept at most.  [default: 1; without --reward all]")
@click.option("--least", type=float, metavar="X", help="What an answer must be worth to be kept.  [default: 1; of a reward model: any]")
@drawing_options(512)
@chat_format_option
@click.option("--seed", type=int, metavar="N", help="What everything that is drawn comes from.  [default: 0]")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="Settings, as TOML.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="One setting. Can be repeated.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE", help="The JSONL file to be written.")
@click.option("--resume", is_flag=True, help="Go on where it was stopped.")
@click.option("--force", is_flag=True, help="With --resume: although settings or data have changed.")
@json_option
@offline_option
def reject(out: Path, file: Path | None, changes: tuple[str, ...], as_json: bool, rewards: tuple[str, ...], **options: Any) -> None:
    """Rejection sampling: several answers to each prompt, and the best of them as conversations to learn from.

    Answers lie in FILE.run while it goes on, safe from batch to batch; FILE is there when all are.
    """
    from herd.cli.output import fetching, print_json
    from herd.cli.watching import watching
    from herd.training.settings.reading import read_settings
    from herd.training.settings.rejection import RejectionSettings

    names = ("model", "data", "answers", "keep", "least", "max_tokens", "temperature", "backend", "chat_format", "seed")
    given = named(options, {name: name for name in names})
    if rewards:
        given["rewards"] = [reward_of(each) for each in rewards]
    settings = read_settings(RejectionSettings, file, changes, given)
    from herd.api.tuning_reject import reject as draw
    from herd.api.tuning_run import Conduct

    with fetching() as progress, watching(out.name) as watched:
        found = draw(settings, out, Conduct(options["resume"], options["force"], watched, progress=progress))
    told = {"file": str(found.path), "complete": found.is_complete, "prompts": found.asked, "kept": found.kept}
    told["left_out"] = dict(found.left_out)
    means = {"mean_reward": found.mean_reward, "kept_reward": found.kept_reward} if settings.rewards else {}
    if as_json:
        print_json({**told, **means, "data": found.account.as_json()})
        return
    for line in found.account.lines():
        click.echo(line, err=True)
    for why, count in found.left_out.items():
        click.echo(f"left out {count:,} answers: {why}", err=True)
    if not found.is_complete:
        click.echo(f"Stopped with {found.kept:,} answers to {found.asked:,} prompts. The same command goes on with --resume.")
        return
    judged = f"; mean reward {found.mean_reward:.3f}" if settings.rewards else ""
    click.echo(f"{found.kept:,} answers to {found.asked:,} prompts kept in {found.path}{judged}")


def reward_of(text: str) -> Any:
    """`--reward KIND`, `--reward FILE.py:NAME` or `--reward FOLDER` as settings."""
    from herd.errors import UsageError, did_you_mean
    from herd.training.settings.rewards import RewardSettings

    if ".py:" in text:
        return RewardSettings(kind="function", function=text)
    if text in KINDS:
        return RewardSettings(kind=text)  # type: ignore[arg-type]
    if Path(text).is_dir():
        return RewardSettings(kind="model", model=text)
    raise UsageError(f"There is no reward {text!r:.60}{did_you_mean(text, KINDS)} There are {REWARDS}.")
