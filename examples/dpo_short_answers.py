"""DPO in one command: a model that explains at length learns to answer briefly, and a rule checks that it did.

    python examples/dpo_short_answers.py --model smollm2-135m-instruct --out runs/short

Makes pairs of answers to sums and comparisons (a bare answer is preferred to one with words around it), holds 500 pairs out, runs
`herd tune dpo`, and writes before and after to OUT/report.json: preference accuracy on the held-out pairs, and how many of 100 other
prompts are answered in at most five words. How long that takes has not been measured. `--data` takes pairs of your own instead.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import herd
from herd.api.tuning_preferences import tune_preferences
from herd.api.tuning_run import Conduct
from herd.cli.tune_options import watching
from herd.training.preference_settings import PreferenceSettings
from herd.training.settings import read_settings

LEARNED, SHORT_WORDS = 800, 5


def pair(draw: random.Random) -> dict[str, str]:
    """A question, a short answer and a long one, both right."""
    one, other = draw.randint(2, 99), draw.randint(2, 99)
    kind = draw.randrange(3)
    if kind == 0:
        question, answer = f"What is {one} plus {other}?", f"{one + other}"
        long = f"To find the sum we add the two numbers together. Starting with {one} and adding {other} gives us a total of {answer}."
    elif kind == 1:
        question, answer = f"Which is larger, {one} or {other}?", f"{max(one, other)}"
        long = f"Let us compare the two numbers carefully. If we look at {one} and at {other}, we can see that the larger one is {answer}."
    else:
        question, answer = f"Is {one} an even number?", "Yes" if one % 2 == 0 else "No"
        long = f"A number is even if it can be divided by two without a remainder. {answer}, so that is the answer for the number {one}."
    return {"prompt": question, "chosen": f"{answer}.", "rejected": long}


def short_answers(model: herd.Model, prompts: list[str]) -> int:
    """How many prompts are answered in a few words."""
    found = 0
    for prompt in prompts:
        answer = model.collect([], model.chat([{"role": "user", "content": prompt}], max_tokens=24, temperature=0.0)).text
        found += len(answer.split()) <= SHORT_WORDS
    return found


def standard_error(share: float, count: int) -> float:
    return math.sqrt(max(share * (1 - share), 1e-9) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=Path("runs/short"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=500, help="pairs that are measured; claims need 500")
    parser.add_argument("--asked", type=int, default=100, help="prompts that are answered before and after")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    pairs = list({each["prompt"]: each for each in (pair(draw) for _ in range(20_000))}.values())
    prompts = [each["prompt"] for each in pairs[given.held_out + LEARNED :][: given.asked]]
    data = given.data
    if data is None:
        data = given.out.with_suffix(".jsonl")
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(each) + "\n" for each in pairs[: given.held_out + LEARNED]), encoding="utf-8")
    named: dict[str, Any] = {
        "model": given.model,
        "data": [str(data)],
        "held_out": given.held_out,
        "epochs": 0.0,
        "loop.schedule.steps": given.steps,
        "loop.seed": given.seed,
        "lr": 1e-4,
        "pack": 1024,
    }
    with herd.load(given.model) as model:
        before = short_answers(model, prompts)
    with watching("dpo") as told:
        found = tune_preferences(read_settings(PreferenceSettings, named=named), given.out, Conduct(told=told))
    with herd.load(given.out) as model:
        after = short_answers(model, prompts)
    gain = found.held_out["accuracy"] - found.held_out["before_accuracy"]
    error = math.hypot(*(standard_error(found.held_out[name], given.held_out) for name in ("accuracy", "before_accuracy")))
    report = {
        "held_out": found.held_out,
        "gain_in_standard_errors": gain / error,
        "short_answers_before": before / len(prompts),
        "short_answers_after": after / len(prompts),
    }
    (given.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
