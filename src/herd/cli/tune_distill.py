"""`herd tune distill`: learning what a larger model thinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from herd.cli.options import Examples
from herd.cli.tune_options import NAMES, named, place_of, run_options, student_options, watching
from herd.cli.tune_preferences import begun, show

SHARED = ("model", "teacher", "data", "way", "words", "k", "temperature", "learn", "chat_format", "held_out", "max_tokens")
OWN = {
    **NAMES,
    **{name: name for name in (*SHARED, "batch", "epochs", "backend")},
    "divergence": "targets.divergence",
    "evaluate_every": "loop.evaluate_every",
}


@click.command(
    cls=Examples,
    short_help="Learn what a larger model thinks.",
    examples="""
    herd tune distill --model ./small --teacher smollm2-135m-instruct --data books/ --learn all              from its words, kept on disk
    herd tune distill --model ./small --teacher ./large --data prompts.jsonl --on-policy --max-tokens 128    on the student's own answers
    herd tune distill --model ./small --teacher ./large --data a.jsonl --set targets.start=0.9 --set targets.end=0.1
    """,
)
@click.option("--model", metavar="NAME", help="The student: a name, a .gguf file or a folder.")
@click.option("--teacher", metavar="NAME", help="The teacher, of the same vocabulary.")
@click.option("--data", multiple=True, metavar="PATH", help="Conversations or text; with --on-policy prompts. Can be repeated.")
@click.option(
    "--on-policy/--stored", "is_on_policy", default=None, help="On the student's own answers, or on data that the teacher reads once."
)
@click.option("--words", metavar="FOLDER", help="What the teacher said: made, or used if it is there.  [default: beside the run]")
@click.option("--k", type=int, metavar="N", help="How many of the teacher's likeliest tokens count by themselves.  [default: 32]")
@click.option("--divergence", metavar="NAME", help="forward, reverse or js.  [default: forward; on-policy: reverse]")
@click.option("--temperature", type=float, metavar="X", help="That both are softened by.  [default: 1]")
@click.option("--learn", metavar="WHAT", help="What of the data is learned: answers, last or all.  [default: answers]")
@click.option("--chat-format", metavar="NAME", help="How conversations become tokens, for models that do not say.")
@click.option("--held-out", type=float, metavar="X", help="Measured and not learned: a share below 1, or how many.  [default: 0.05]")
@click.option("--max-tokens", type=int, metavar="N", help="The longest example; on-policy the longest answer.  [default: 1024]")
@click.option("--batch", type=int, metavar="N", help="Examples of a step.  [default: 8]")
@click.option("--epochs", type=float, metavar="X", help="How often each example is seen.  [default: 1]")
@click.option("--backend", metavar="NAME", help="What the teacher is run by: cpu or torch.  [default: cpu]")
@click.option("--evaluate-every", type=int, metavar="N", help="Steps between two evaluations.  [default: only before and after]")
@run_options
@student_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def distill(
    out: Path | None,
    file: Path | None,
    changes: tuple[str, ...],
    resume: bool,
    force: bool,
    as_json: bool,
    is_on_policy: bool | None,
    **options: Any,
) -> None:
    """Distillation: of each token the student learns the teacher's whole opinion, by a weight that may change over the run."""
    from herd.cli.output import fetching
    from herd.training.distill_settings import DistillSettings
    from herd.training.settings import read_settings

    given = named(options, OWN)
    if is_on_policy is not None:
        given["way"] = "on-policy" if is_on_policy else "stored"
    settings = read_settings(DistillSettings, file, changes, given)
    folder = place_of(out, settings.data)
    from herd.api.tuning_distill import tune_distill

    with fetching() as progress, watching(folder.name) as told:
        found = tune_distill(settings, folder, resume=resume, force=force, told=told, began=begun, progress=progress)
    show(found, "distill", as_json)
