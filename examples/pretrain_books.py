"""Loss against tokens: AdamW and Muon, a dense llama and a Llama 4 with experts through as many weights for each token.

    python examples/pretrain_books.py runs/books --data books/

All four runs see the same sequences in the same order, from the same seed. Some of the files are left out of learning; passages of them
are read at the end by all four. OUT/report.json has the curves of the held-out loss, what a token of those passages costs each model,
and the differences passage by passage with their standard errors; OUT/report.svg draws the curves.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from charts import chart
from measuring import Spent, compared, costs, in_words, mean_and_error, report

from herd.cli.train_pretrain import write_model
from herd.cli.watching import watching
from herd.data.reading import find_files, read_records
from herd.data.tokenizer_training import train_tokenizer
from herd.training.beginning.pretrain_run import pretrain
from herd.training.running.runs import read_log
from herd.training.settings.pretrain import PretrainSettings
from herd.training.settings.reading import read_settings
from herd.training.student.allocation import tensor_memory

RATES = {"adamw": 3e-3, "muon": 6e-3}
BATCH = 4096
DENSE = {"architecture": "llama", "width": 128, "layers": 4, "heads": 4, "kv_heads": 2, "head_width": 32, "ffn_width": 384, "tied": True}
EXPERTS = {
    **DENSE, "architecture": "llama4", "experts": 8, "expert_every": 1, "expert_width": 192, "global_every": 4, "chunk": 8192,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files or folders of text")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--unread", type=int, default=3, help="files that are left out of learning")
    parser.add_argument("--asked", type=int, default=600, help="passages of them; claims need 500")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0")
    given = parser.parse_args()
    spent = Spent(given.out)
    files = sorted(find_files(given.data).paths)
    unread = sorted(random.Random(0).sample(files, given.unread))
    learned = [path for path in files if path not in unread]
    words = given.out / "words"
    if not (words / "tokenizer.json").is_file():
        train_tokenizer((str(each.value["text"]) for each in read_records(learned)), 2048, words)
    asked = passages(unread, given.asked)
    curves, cost, minutes = {}, {}, {}
    for seed in range(given.seeds):
        for optimiser, rate in RATES.items():
            for shape, model in (("dense", DENSE), ("experts", EXPERTS)):
                name = f"{optimiser} {shape}" + (f" {seed}" if given.seeds > 1 else "")
                folder = given.out / name.replace(" ", "-")
                what = {"optimiser": optimiser, "rate": rate, "model": model, "seed": seed}
                curves[name] = run(folder, learned, words, given.steps, what)
                minutes[name] = round(sum(line["step_s"] for line in read_log(folder / "timings.jsonl")) / 60, 1)
                cost[name] = costs(folder / "model", asked)
                print(name, mean_and_error(cost[name]), flush=True)
    lines = {name: curve["held_out"] for name, curve in curves.items()}
    drawn = chart(given.out / "loss.svg", "Held-out loss against tokens", "tokens learned", "nats a token", lines)
    found = {
        "steps": given.steps,
        "minutes_of_steps": minutes,
        "unread": [path.name for path in unread],
        "nats_a_token": {name: in_words(each) for name, each in cost.items()},
        "gains": {f"{one} over {other}": gain(cost[other], cost[one]) for one, other in among(list(cost))},
        "expert_load_max": {name: round(curve["load"][-1], 2) for name, curve in curves.items() if curve["load"]},
        "curves": curves,
    }
    report(given.out, spent, found, drawn)


def passages(files: list[Path], count: int) -> list[str]:
    """Paragraphs of 200 to 600 characters: shorter than what the models were made for."""
    texts = (str(record.value["text"]) for record in read_records(files))
    found = {" ".join(part.split()) for text in texts for part in text.split("\n\n") if 200 <= len(part) <= 600}
    return random.Random(0).sample(sorted(found), min(count, len(found)))


def among(names: list[str]) -> list[tuple[str, str]]:
    """Which is compared with which: Muon with AdamW, experts with dense."""
    muon = [(name, name.replace("muon", "adamw")) for name in names if "muon" in name]
    return muon + [(name, name.replace("experts", "dense")) for name in names if "experts" in name]


def gain(before: list[float], after: list[float]) -> dict[str, float]:
    """How much less a token costs."""
    found = compared([-cost for cost in before], [-cost for cost in after])
    return {name: round(found[name], 4) for name in ("items", "gain", "gain_error", "gain_in_errors")}


def run(folder: Path, learned: list[Path], words: Path, steps: int, what: dict[str, Any]) -> dict[str, Any]:
    """One run, begun or gone on with; its curves as (tokens, loss)."""
    named = {
        "tokenizer": str(words),
        "data": [{"name": "books", "path": [str(path) for path in learned], "held_out": 0.02}],
        "model": what["model"],
        "optimiser": {"name": what["optimiser"]},
        "sequence": 256,
        "batch_tokens": BATCH,
        "eval_tokens": 16384,
        "balancing": {"bias": 0.01},
        "loop": {
            "seed": what["seed"],
            "evaluate_every": max(1, steps // 10),
            "schedule": {"name": "wsd", "lr": what["rate"], "steps": steps, "warmup": steps // 20},
        },
    }
    settings = read_settings(PretrainSettings, None, (), named)
    with tensor_memory(), watching(folder.name) as told:
        pretrain(settings, folder, write_model, resume=(folder / "config.toml").is_file(), told=told)
    lines = list(read_log(folder / "metrics.jsonl"))
    return {
        "held_out": of(lines, "held_out.loss")[1:],
        "learned": of(lines, "loss")[::10],
        "load": [line["expert_load_max"] for line in lines if "expert_load_max" in line],
    }


def of(lines: list[dict[str, Any]], name: str) -> list[list[float]]:
    """A figure of a log as [tokens, value]."""
    return [[line["step"] * BATCH, round(line[name], 4)] for line in lines if name in line]


if __name__ == "__main__":
    main()
