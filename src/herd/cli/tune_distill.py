"""`herd tune distill`: learning what a larger model thinks."""

from __future__ import annotations

from typing import Any

import click

from herd.cli.options import Examples
from herd.cli.tune_options import NAMES, asked, carry_out, data_options, epoch_options, run_options, student_options

OWN = {name: name for name in ("teacher", "words", "k", "temperature", "learn", "backend")}


@click.command(
    cls=Examples,
    short_help="Learn what a larger model thinks.",
    examples="""
    herd tune distill --model ./small --teacher smollm2-135m-instruct --data books/ --learn all              from its words, kept on disk
    herd tune distill --model ./small --teacher ./large --data prompts.jsonl --on-policy --max-tokens 128    on the student's own answers
    herd tune distill --model ./small --words runs/small-teacher                                             from words that are there
    herd tune distill --model ./small --teacher ./large --data a.jsonl --set targets.start=0.9 --set targets.end=0.1
    """,
)
@data_options("Conversations or text; with --on-policy prompts.", "The student: a name, a .gguf file or a folder.")
@click.option("--teacher", metavar="NAME", help="The teacher, of the same vocabulary.")
@click.option(
    "--on-policy/--stored", "is_on_policy", default=None, help="On the student's own answers, or on data that the teacher reads once."
)
@click.option("--words", metavar="FOLDER", help="What the teacher said: made, or used if it is there.  [default: beside the run]")
@click.option("--k", type=int, metavar="N", help="How many of the teacher's likeliest tokens count by themselves.  [default: 32]")
@click.option("--divergence", metavar="NAME", help="forward, reverse or js.  [default: forward; on-policy: reverse]")
@click.option("--temperature", type=float, metavar="X", help="That both are softened by.  [default: 1]")
@click.option("--learn", metavar="WHAT", help="What of the data is learned: answers, last or all.  [default: answers]")
@click.option("--backend", metavar="NAME", help="What the teacher is run by: cpu or torch.  [default: cpu]")
@epoch_options("The longest example; on-policy the longest answer.  [default: 1024]")
@run_options()
@student_options()
def distill(is_on_policy: bool | None, **options: Any) -> None:
    """Distillation: of each token the student learns the teacher's whole opinion, by a weight that may change over the run."""
    from herd.training.settings.distill import DistillSettings

    way = {} if is_on_policy is None else {"way": "on-policy" if is_on_policy else "stored"}
    settings, folder = asked(DistillSettings, options, {**NAMES, **OWN, "divergence": "targets.divergence"}, **way)
    from herd.api.tuning_distill import tune_distill

    carry_out("distill", tune_distill, settings, folder, options)
