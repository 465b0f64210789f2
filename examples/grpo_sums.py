"""GRPO in one command: a small model gets better at sums, from nothing but whether its answers are right.

    python examples/grpo_sums.py --out runs/sums

The untuned model explains how one adds and reaches no number. So `herd tune sft` shows it a hundred sums first (`--shown`), and
`herd tune merge` makes that a model of its own: where this run begins. Then `herd tune grpo` with the reward `number` over other sums:
at each step the model answers `--prompts` sums `--answers` times, and answers that are better than their neighbours become likelier.
All three models are asked 500 sums that none of this has seen (likeliest answers; right is the sum as the last number of the answer).
OUT/report.json has that, the curve of the reward, and the gap between the probabilities of engine and trainer at each step.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path
from typing import Any

from charts import Lines, chart, smoothed
from measuring import Spent, answers, command, compared, in_words, log_of, mean_and_error, report, write_lines

ASKED = "Add."


def problems(largest: int, added: int, seed: int) -> list[dict[str, Any]]:
    """Every sum of a number up to `largest` and one up to `added`, in an order drawn from the seed."""
    found = [
        {"prompt": f"{one} + {other} =", "answer": one + other, "system": ASKED}
        for one in range(1, largest + 1)
        for other in range(1, added + 1)
    ]
    random.Random(seed).shuffle(found)
    return found


def right(name: str | Path, asked: list[dict[str, Any]], max_tokens: int) -> list[float]:
    """1 for each sum that is answered with its number."""
    conversations = [[{"role": "system", "content": each["system"]}, {"role": "user", "content": each["prompt"]}] for each in asked]
    found = answers(name, conversations, max_tokens)
    return [float(re.findall(r"\d+", answer)[-1:] == [str(each["answer"])]) for answer, each in zip(found, asked, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=Path("runs/sums"))
    parser.add_argument("--shown", type=int, default=100, help="sums with their answers that it begins with")
    parser.add_argument("--shown-epochs", type=float, default=2)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--prompts", type=int, default=6, help="sums of a step")
    parser.add_argument("--answers", type=int, default=8, help="answers to each")
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--held-out", type=int, default=500, help="sums that are measured; claims need 500")
    parser.add_argument("--largest", type=int, default=200, help="the first number")
    parser.add_argument("--added", type=int, default=9, help="the second number")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    spent = Spent(given.out)
    made = problems(given.largest, given.added, given.seed)
    held_out, shown, learned = made[: given.held_out], made[given.held_out :][: given.shown], made[given.held_out + given.shown :]
    data = write_lines(given.out.with_suffix(".jsonl"), learned)
    records = [{"prompt": each["prompt"], "completion": str(each["answer"]), "system": ASKED} for each in shown]
    answered = write_lines(given.out.with_name(f"{given.out.name}-shown.jsonl"), records)
    tuned, start = given.out.with_name(f"{given.out.name}-shown"), given.out.with_name(f"{given.out.name}-start")

    untuned = right(given.model, held_out, given.max_tokens)
    shown_s = command(
        *("tune", "sft", "--model", given.model, "--data", answered, "--out", tuned, "--lora", "--epochs", given.shown_epochs),
        *("--batch", 16, "--held-out", 0, "--lr", 1e-3, "--seed", given.seed, "--set", "samples=0"),
    )
    command("tune", "merge", tuned, start)
    before = right(start, held_out, given.max_tokens)
    print("before", mean_and_error(before), flush=True)
    seconds = command(
        *("tune", "grpo", "--model", start, "--data", data, "--out", given.out, "--lora", "--held-out", 0, "--variant", "dapo"),
        *("--steps", given.steps, "--lr", given.lr, "--prompts", given.prompts, "--answers", given.answers, "--seed", given.seed),
        *("--max-tokens", given.max_tokens, "--set", "rollouts.redraw=1", "--set", "loop.schedule.warmup=5"),
    )
    after = right(given.out, held_out, given.max_tokens)
    curves = log_of(given.out, "reward", "loss", "gap", "gap_most", "length")
    rewards = [value for _, value in curves["reward"]]
    sixth = max(1, len(rewards) // 6)
    found = {
        "shown": len(shown),
        "learned_from": len(learned),
        "minutes_of_commands": {"sft": round(shown_s / 60, 1), "grpo": round(seconds / 60, 1)},
        "accuracy_untuned": in_words(untuned),
        "accuracy": compared(before, after),
        "reward_of_first_sixth": in_words(rewards[:sixth]),
        "reward_of_last_sixth": in_words(rewards[-sixth:]),
        "gap_between_engine_and_trainer": {
            "mean": mean_and_error([value for _, value in curves["gap"]])[0],
            "most": max(value for _, value in curves["gap_most"]),
        },
        "curves": curves,
    }
    report(given.out, spent, found, draw(curves, given.out / "reward.svg"))


def draw(curves: Lines, path: Path) -> Path:
    """The reward of each step, and of five together."""
    lines = {"mean of five steps": smoothed(curves["reward"], 5), "of each step": curves["reward"]}
    return chart(path, "Sums: share of drawn answers that are right", "step", "reward", lines)


if __name__ == "__main__":
    main()
