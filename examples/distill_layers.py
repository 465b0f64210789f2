"""Distillation in one command: four layers of a model learn to write as all thirty do, better than from the text alone.

    python examples/distill_layers.py --data books/ --out runs/four

`--data` is text (books, say); passages of it are drawn. The student is `--layers` of the model's own layers, which understand nothing
together at first. It learns twice from the same passages in the same order, for as many steps, at the same rate:

    OUT-alone      from the next token of the text: the teacher counts 0
    OUT            from the teacher's likeliest tokens beside it: it counts 0.9 at the first step and 0.5 at the last

Then both and the teacher read passages that nobody learned, from other places of the text. OUT/report.json has what a token costs each.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

from charts import Lines, chart, smoothed
from measuring import Spent, command, compared, costs, in_words, log_of, report, write_lines

from herd.checkpoints.open import open_checkpoint
from herd.convert.trained import write_trained
from herd.data.reading import find_files, read_records
from herd.dtypes import BF16
from herd.family.finding import find_model
from herd.models.architecture import architecture_of

SHORTEST, LONGEST = 200, 450
"""Characters of a passage."""


def passages(data: list[Path], count: int, seed: int) -> list[str]:
    """Paragraphs of all files, drawn without putting back."""
    found = {
        " ".join(paragraph.split())
        for record in read_records(find_files(data).paths)
        for paragraph in str(record.value["text"]).split("\n\n")
        if SHORTEST <= len(paragraph) <= LONGEST
    }
    return random.Random(seed).sample(sorted(found), count)


def write_shallow(name: str, layers: list[int], folder: Path) -> None:
    """A model of some of another one's layers, with its table, its last norm and its head."""
    checkpoint = open_checkpoint(find_model(name).path)
    cfg = replace(checkpoint.config, num_layers=len(layers))
    leaves = {}
    for spec in architecture_of(cfg).tensors(cfg):
        head, _, rest = spec.name.partition(".")
        at, _, inside = rest.partition(".")
        leaves[spec.name] = checkpoint.leaf(f"layers.{layers[int(at)]}.{inside}" if head == "layers" else spec.name)
    about = {"tokenizer": checkpoint.tokenizer, "chat_template": checkpoint.chat_template, "stop_ids": checkpoint.stop_ids}
    write_trained(folder, cfg, leaves, dtype=BF16, **about)
    checkpoint.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the teacher")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files or folders of text")
    parser.add_argument("--out", type=Path, default=Path("runs/four"))
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 15, 29], help="layers of the teacher that the student has")
    parser.add_argument("--learned", type=int, default=800, help="passages; each is seen once")
    parser.add_argument("--asked", type=int, default=600, help="held-out passages; claims need 500")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    spent = Spent(given.out)
    drawn = passages(given.data, given.learned + given.asked, given.seed)
    held_out, learned = drawn[: given.asked], drawn[given.asked :]
    data = write_lines(given.out.with_suffix(".jsonl"), [{"text": text} for text in learned])
    start = given.out.with_name(f"{given.out.name}-start")
    write_shallow(given.model, given.layers, start)

    words, alone = given.out.with_name(f"{given.out.name}-teacher"), given.out.with_name(f"{given.out.name}-alone")
    minutes = {}
    for folder, shares in ((given.out, (0.9, 0.5)), (alone, (0, 0))):
        seconds = command(
            *("tune", "distill", "--model", start, "--teacher", given.model, "--data", data, "--words", words, "--out", folder),
            *("--learn", "all", "--max-tokens", 256, "--held-out", 0, "--epochs", 1, "--batch", 12, "--lr", given.lr),
            *("--seed", given.seed, "--set", f"targets.start={shares[0]}", "--set", f"targets.end={shares[1]}"),
            *("--set", "loop.schedule.warmup=5"),
        )
        minutes[folder.name] = round(seconds / 60, 1)
    with_teacher, without = costs(given.out, held_out), costs(alone, held_out)
    found = {
        "layers": given.layers,
        "learned": len(learned),
        "minutes_of_commands": minutes,
        "nats_a_token": compared([-cost for cost in without], [-cost for cost in with_teacher]),
        "perplexity_is_lower_on": sum(one < other for one, other in zip(with_teacher, without, strict=True)) / len(held_out),
        "start": in_words(costs(start, held_out[:100])),
        "teacher": in_words(costs(given.model, held_out)),
        "curves": {"with": log_of(given.out, "nll", "divergence"), "alone": log_of(alone, "nll", "divergence")},
    }
    report(given.out, spent, found, draw(found["curves"], given.out / "cost.svg"))


def draw(curves: dict[str, Lines], path: Path) -> Path:
    """What a token of the text that is learned costs both."""
    lines = {name: smoothed(each["nll"], 5)[4:] for name, each in curves.items()}
    return chart(path, "Four layers: cost of the learned text's tokens, mean of five steps", "step", "nats a token", lines)


if __name__ == "__main__":
    main()
