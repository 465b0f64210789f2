"""`herd tune dpo`, `simpo`, `kto`, `orpo` and `reward`: learning which answers are better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from herd.cli.options import Examples
from herd.cli.tune_options import NAMES, asked, carry_out, data_options, epoch_options, run_options, student_options

LOSS = {name: f"loss.{name}" for name in ("beta", "nll", "margin", "formatting", "label_smoothing", "gamma", "desirable", "undesirable")}
MARGIN = "How much a record's margin counts, by which its chosen answer has to be ahead.  [default: 0]"
PAIRS, JUDGED = "prompt, chosen and rejected", "prompt, completion and label"
NUMBERS = {
    "nll": "Weight of the chosen answer's own loss.  [default: 0.2]",
    "margin": MARGIN,
    "gamma": "By how much a chosen answer has to be better.  [default: 0.5]",
    "desirable": "Weight of good answers.  [default: 1]",
    "undesirable": "Weight of bad answers.  [default: 1]",
    "label-smoothing": "Share of pairs that may be the wrong way round.  [default: 0]",
}
"""What a method may have besides `beta`."""


def judging(records: str, short: str, examples: str) -> Callable[[Any], click.Command]:
    """A command over pairs or judged answers."""

    def made(function: Any) -> click.Command:
        options = (
            data_options(f"Records with {records}, as JSONL."),
            epoch_options("The longest answer with its prompt.  [default: 2048]"),
            run_options(),
            student_options("lora"),
        )
        for option in reversed(options):
            function = option(function)
        command: click.Command = click.command(cls=Examples, short_help=short, examples=examples)(function)
        return command

    return made


def method(name: str, short: str, help: str, examples: str, beta: str, *numbers: str, records: str = PAIRS) -> click.Command:
    """A method of preference optimisation as a command. beta: what it is there; numbers: which of `NUMBERS` it has."""

    def learn(**options: Any) -> None:
        from herd.training.settings.preferences import PreferenceSettings

        settings, folder = asked(PreferenceSettings, options, {**NAMES, **LOSS}, **{"loss.method": name})
        from herd.api.tuning_preferences import tune_preferences

        carry_out(name, tune_preferences, settings, folder, options)

    learn.__name__, learn.__doc__ = name, help
    formatting = "Whether control tokens of answers count.  [default: they do not]"
    function: Any = click.option("--formatting/--no-formatting", default=None, help=formatting)(learn)
    for number in reversed(numbers):
        function = click.option(f"--{number}", type=float, metavar="X", help=NUMBERS[number])(function)
    return judging(records, short, examples)(click.option("--beta", type=float, metavar="X", help=beta)(function))


dpo = method(
    "dpo",
    "Learn which of two answers is better.",
    "Direct preference optimisation, as Llama 3 used it: with a part of the chosen answer's own loss, and without control tokens.",
    """
    herd tune dpo --model smollm2-135m-instruct --data pairs.jsonl          with the settings of Llama 3
    herd tune dpo --model runs/faq --data pairs.jsonl --beta 0.05 --nll 0   other numbers
    herd chat runs/pairs                                                    talk to the result
    """,
    "How firmly the model is held to where it started.  [default: 0.1]",
    "nll",
    "margin",
    "label-smoothing",
)
simpo = method(
    "simpo",
    "Learn which of two answers is better, without a reference.",
    "SimPO: answers are compared by their mean log-probability; no model as it was is needed.",
    "herd tune simpo --model smollm2-135m-instruct --data pairs.jsonl --gamma 0.5",
    "How much a difference of means counts.  [default: 2]",
    "gamma",
    "label-smoothing",
)
kto = method(
    "kto",
    "Learn from single answers that are good or bad.",
    "Kahneman-Tversky optimisation: answers need no partner, only a judgement.",
    "herd tune kto --model smollm2-135m-instruct --data judged.jsonl",
    "How firmly the model is held to where it started.  [default: 0.1]",
    "desirable",
    "undesirable",
    records=JUDGED,
)
orpo = method(
    "orpo",
    "Learn answers and preferences at once.",
    "ORPO: the chosen answer's own loss and the odds of chosen to rejected, without a reference.",
    "herd tune orpo --model smollm2-135m-instruct --data pairs.jsonl",
    "Weight of the odds beside the chosen answer's own loss.  [default: 0.1]",
)


@judging(
    PAIRS,
    "Make a model that judges answers.",
    "herd tune reward --model smollm2-135m-instruct --data pairs.jsonl --out runs/judge",
)
@click.option("--margin", type=float, metavar="X", help=MARGIN)
def reward(**options: Any) -> None:
    """A reward model: one number for each answer, so that the better ones have the larger."""
    from herd.training.settings.reward_model import RewardModelSettings

    settings, folder = asked(RewardModelSettings, options, {**NAMES, "margin": "margin"})
    from herd.api.tuning_preferences import tune_reward

    carry_out("reward", tune_reward, settings, folder, options)
