"""Loss against tokens: AdamW and Muon, a dense llama and a Llama 4 with experts through as many weights for each token.

    python examples/pretrain_books.py runs/books --data books/               four runs; their time has not been measured
    python examples/pretrain_books.py runs/books --data books/ --steps 40    short ones

All four see the same sequences in the same order, from the same seed. What is held out is a hundredth of the text, in sections. Writes
`results.json` and, where matplotlib is installed, `loss.svg`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from herd.cli.train_pretrain import write_model
from herd.cli.train_progress import printed
from herd.data.reading import find_files, read_records
from herd.data.tokenizer_training import train_tokenizer
from herd.training.allocation import keep_memory
from herd.training.pretrain_run import pretrain
from herd.training.pretrain_settings import PretrainSettings
from herd.training.runs import read_log
from herd.training.settings import read_settings

RATES = {"adamw": 3e-3, "muon": 6e-3}
DENSE = {"architecture": "llama", "width": 128, "layers": 4, "heads": 4, "kv_heads": 2, "head_width": 32, "ffn_width": 384, "tied": True}
EXPERTS = {
    **DENSE, "architecture": "llama4", "experts": 8, "expert_every": 1, "expert_width": 192, "global_every": 4, "chunk": 8192,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files or folders of text")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0")
    given = parser.parse_args()
    words = given.out / "words"
    if not (words / "tokenizer.json").is_file():
        train_tokenizer((str(each.value["text"]) for each in read_records(find_files(given.data).paths)), 2048, words)
    keep_memory()
    results = {}
    for seed in range(given.seeds):
        for optimiser, rate in RATES.items():
            for shape, model in (("dense", DENSE), ("experts", EXPERTS)):
                name = f"{optimiser}-{shape}-{seed}"
                results[name] = run(given.out / name, given, words, {"optimiser": optimiser, "rate": rate, "model": model, "seed": seed})
                print(name, json.dumps(results[name]["held_out"][-1]), flush=True)
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, given.out / "loss.svg")


def run(folder: Path, given: argparse.Namespace, words: Path, what: dict[str, Any]) -> dict[str, Any]:
    """One run, begun or gone on with; its curve as (tokens, loss)."""
    named = {
        "tokenizer": str(words),
        "data": [{"name": "books", "path": [str(path) for path in given.data]}],
        "model": what["model"],
        "optimiser": {"name": what["optimiser"]},
        "sequence": 256,
        "batch_tokens": 4096,
        "eval_tokens": 32768,
        "balancing": {"bias": 0.01},
        "loop": {
            "seed": what["seed"],
            "evaluate_every": max(1, given.steps // 8),
            "schedule": {"name": "wsd", "lr": what["rate"], "steps": given.steps, "warmup": given.steps // 20},
        },
    }
    settings = read_settings(PretrainSettings, None, (), named)
    pretrain(settings, folder, write_model, resume=(folder / "config.toml").is_file(), told=printed())
    lines = list(read_log(folder / "metrics.jsonl"))
    held = [[line["step"] * 4096, line["held_out.loss"]] for line in lines if "held_out.loss" in line]
    loads = [line["expert_load_max"] for line in lines if "expert_load_max" in line]
    return {
        "held_out": held,
        "learned": [[line["step"] * 4096, line["loss"]] for line in lines if "loss" in line],
        "expert_load_max": loads,
    }


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Held-out loss against tokens, a line for each run."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed, so nothing was drawn")
        return
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, result in results.items():
        tokens, losses = zip(*result["held_out"], strict=True)
        axes.plot(tokens, losses, label=name)
    axes.set(xlabel="tokens learned", ylabel="held-out loss, nats a token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
