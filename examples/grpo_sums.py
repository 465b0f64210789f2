"""GRPO in one command: a small model learns to add, from nothing but whether its answers are right.

    python examples/grpo_sums.py --model smollm2-135m-instruct --out runs/sums

Makes sums, holds 500 out, runs `herd tune grpo` with the reward `number`, and writes the held-out accuracy before and after (likeliest
answers) to OUT/report.json; the curve of the reward and the gap between engine and trainer are in OUT/metrics.jsonl. How long that
takes has not been measured. `--data` takes prompts of your own ({"prompt": ..., "answer": ...}).
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

from herd.api.tuning_grpo import tune_grpo
from herd.api.tuning_run import Conduct
from herd.cli.tune_options import watching
from herd.training.grpo_settings import GrpoSettings, variant
from herd.training.settings import read_settings


def problem(draw: random.Random, largest: int) -> dict[str, Any]:
    one, other = draw.randint(1, largest), draw.randint(1, largest)
    return {"prompt": f"What is {one} + {other}? Answer with the number only.", "answer": one + other}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=Path("runs/sums"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=500, help="sums that are measured; claims need 500")
    parser.add_argument("--largest", type=int, default=99)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    data = given.data
    if data is None:
        sums = list({each["prompt"]: each for each in (problem(draw, given.largest) for _ in range(8000))}.values())
        data = given.out.with_suffix(".jsonl")
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(each) + "\n" for each in sums[: given.held_out + 1500]), encoding="utf-8")
    named: dict[str, Any] = {
        "model": given.model,
        "data": [str(data)],
        "held_out": given.held_out,
        "steps": given.steps,
        "loop.seed": given.seed,
        "lr": 1e-4,
        "loss": variant("dapo"),
        "rollouts.prompts": 8,
        "rollouts.answers": 8,
        "rollouts.max_tokens": 12,
        "rollouts.redraw": 1,
        "pack": 1024,
    }
    with watching("grpo") as told:
        found = tune_grpo(read_settings(GrpoSettings, named=named), given.out, Conduct(told=told))
    before, after = found.held_out["before_reward"], found.held_out["reward"]
    error = math.sqrt(sum(max(share * (1 - share), 1e-9) for share in (before, after)) / given.held_out)
    report = {"accuracy_before": before, "accuracy_after": after, "gain_in_standard_errors": (after - before) / error}
    (given.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
