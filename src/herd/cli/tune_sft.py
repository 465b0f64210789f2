"""`herd tune sft`: supervised fine-tuning."""

from __future__ import annotations

from typing import Any

import click

from herd.cli.options import Examples
from herd.cli.tune_options import NAMES, asked, carry_out, data_options, epoch_options, run_options, student_options


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
@data_options("Conversations as JSONL (OpenAI's, ShareGPT's or Alpaca's way), or text.")
@click.option("--held-out-data", multiple=True, metavar="PATH", help="Measured in place of a share of --data. Can be repeated.")
@click.option("--shape", metavar="NAME", help="How records are written, where that is not to be detected.")
@click.option("--learn", metavar="WHAT", help="What carries loss: answers, last or all.  [default: answers]")
@epoch_options(epochs=3)
@run_options()
@student_options()
def sft(**options: Any) -> None:
    """Learn the answers of conversations, into the folder of a run that `herd chat` takes at once."""
    from herd.training.settings.sft import SftSettings

    settings, folder = asked(SftSettings, options, {**NAMES, **{name: name for name in ("held_out_data", "shape", "learn")}})
    from herd.api.tuning_sft import tune_sft

    carry_out("sft", tune_sft, settings, folder, options)
