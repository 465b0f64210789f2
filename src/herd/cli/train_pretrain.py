"""`herd train pretrain`: a model learns from nothing, or goes on learning, from text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from herd.cli.options import Examples, offline_option
from herd.cli.tune_options import run_options

if TYPE_CHECKING:
    from herd.models.architecture import Config
    from herd.models.weights import Matrix
    from herd.training.beginning.words import Words

PLACE = Path("runs/pretrain")
NAMED = {
    "tokenizer": "tokenizer",
    "begin": "begin",
    "like": "model.like",
    "architecture": "model.architecture",
    "width": "model.width",
    "layers": "model.layers",
    "experts": "model.experts",
    "sequence": "sequence",
    "batch_tokens": "batch_tokens",
    "optimiser": "optimiser.name",
    "steps": "loop.schedule.steps",
    "lr": "loop.schedule.lr",
    "warmup": "loop.schedule.warmup",
    "schedule": "loop.schedule.name",
    "seed": "loop.seed",
    "evaluate_every": "loop.evaluate_every",
    "save_every": "loop.save_every",
}


@click.command(
    cls=Examples,
    short_help="Learn a model from text.",
    examples="""
    herd train pretrain --data books/ --tokenizer ./words --like llama-3.2-1b --width 256 --layers 4 --steps 500 --lr 3e-3
    herd train pretrain --data books/ --tokenizer ./words --architecture llama4 --width 128 --layers 4 --experts 8 --optimiser muon
    herd train pretrain --config run.toml --out runs/mine --set z_loss=1e-4     everything from a file, but for one number
    herd train pretrain --resume --out runs/mine                              go on where it was stopped
    herd run runs/mine/model "Once upon a time"                               what it has learned
    """,
)
@click.option("--data", multiple=True, type=click.Path(path_type=Path), metavar="PATH", help="Text or JSONL, files or folders; repeatable.")
@click.option("--tokenizer", metavar="PATH", help="A folder of `herd train tokenizer`, or a model.")
@click.option("--begin", metavar="MODEL", help="Go on from this model's weights, not from random ones.")
@click.option("--like", metavar="MODEL", help="Take the architecture and proportions of this release or model.")
@click.option("--architecture", metavar="NAME", help="llama, or llama4 (experts).")
@click.option("--width", type=int, metavar="N", help="Length of a token's vector.")
@click.option("--layers", type=int, metavar="N", help="How many layers.")
@click.option("--experts", type=int, metavar="N", help="llama4: experts in a layer.")
@click.option("--sequence", type=int, metavar="N", help="Tokens of a sequence.  [default: 512]")
@click.option("--batch-tokens", type=int, metavar="N", help="Tokens of a step.  [default: 8192]")
@click.option("--optimiser", metavar="NAME", help="adamw or muon.  [default: adamw]")
@click.option("--warmup", type=int, metavar="N", help="Steps until the learning rate is there.  [default: 0]")
@click.option("--schedule", metavar="NAME", help="cosine, wsd, linear or constant.  [default: cosine]")
@click.option("--evaluate-every", type=int, metavar="N", help="Steps between two measurements on held-out text.")
@click.option("--save-every", type=int, metavar="N", help="Steps between two checkpoints.")
@run_options(str(PLACE), "How many steps.  [default: 1000]", "Highest learning rate.  [default: 0.001]")
@offline_option
def pretrain(out: Path | None, file: Path | None, changes: tuple[str, ...], resume: bool, force: bool, **options: Any) -> None:
    """Learn a model from text, and write it to the folder `model` of the run.

    All settings, with what they mean: docs/reference/training.md. A run that was stopped goes on exactly where it was with --resume.
    """
    from herd.cli.watching import show_curve, watching
    from herd.training.beginning.pretrain_run import pretrain as learn
    from herd.training.company import is_first
    from herd.training.running.runs import saved_settings
    from herd.training.settings.pretrain import PretrainSettings
    from herd.training.settings.reading import read_settings
    from herd.training.student.allocation import tensor_memory

    named = {name: options[option] for option, name in NAMED.items() if options[option] is not None}
    if options["data"]:
        named["data"] = [{"name": "text", "path": [str(path) for path in options["data"]]}]
    out = out or PLACE
    if resume and file is None and not named and not changes:
        settings = saved_settings(out, PretrainSettings)
    else:
        settings = read_settings(PretrainSettings, file, changes, named)
    notes: list[str] = []
    with tensor_memory(), watching(out.name) as told:
        end = learn(settings, out, partial(write_model, notes=notes), resume=resume, force=force, told=told)
    if not is_first():
        return
    if not end.is_complete:
        click.echo(f"Stopped; everything is saved. Go on with: herd train pretrain --resume --out {out}")
        return
    show_curve(out)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f'The model is in {out / "model"}. Try it: herd run {out / "model"} "Once upon a time"')


def write_model(
    folder: Path, cfg: Config, leaves: Mapping[str, Matrix], words: Words, beside: Path | None, notes: list[str] | None = None
) -> None:
    """The trained model as a folder that can be loaded, with the licence texts of the one that it began with. `notes` get what a person
    should know of it. `UsageError` if its name is taken."""
    from herd.convert.trained import write_trained

    files = {"tokenizer": words.source, "chat_template": words.chat_template, "stop_ids": words.stop_ids, "beside": beside}
    made = write_trained(folder, cfg, leaves, **files)  # type: ignore[arg-type]
    if notes is not None:
        notes += made.notes
