"""DPO in one command: a model that explains at length learns to answer briefly, and a rule checks that it did.

    python examples/dpo_short_answers.py --out runs/short

Makes pairs of answers to small questions (a bare answer is preferred to one with words around it; both are right) and runs
`herd tune dpo`, with `--formatting`: where an answer ends is what is learned here. Before and after, on questions that were not learned,
three things are measured and written to OUT/report.json:

    preferred    the share of held-out pairs whose short answer has the higher log-probability per token
    gained       the share whose short answer gained more than the long one over the run: what DPO calls accuracy (chance: a half)
    short        the share of questions that the model answers in at most five words, of the kinds that were learned and of others
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from charts import Lines, chart
from measuring import Spent, answers, chances, command, compared, in_words, log_of, report, write_lines

SHORT_WORDS = 5
WORDS = (
    *("apple", "river", "window", "garden", "yellow", "rocket", "letter", "summer", "island"),
    *("bridge", "castle", "teacher", "doctor", "painter", "zebra", "coffee", "mirror"),
)


def pair(draw: random.Random, is_new: bool = False) -> dict[str, str]:
    """A question, a short answer and a long one, both right. `is_new`: of the kinds that are never learned."""
    one, other = draw.randint(2, 99), draw.randint(2, 99)
    many, word = one + 100 * other, draw.choice(WORDS)
    kinds = [
        (f"What is {one} plus {other}?", f"{one + other}", f"To find the sum we add the two numbers {one} and {other} together, which is"),
        (
            f"Which is larger, {one} or {other}?",
            f"{max(one, other)}",
            "Let us compare the two numbers carefully. The larger one of them is",
        ),
        (
            f"Is {many} even?",
            "No" if one % 2 else "Yes",
            "A number is even if two divides it without a remainder. The answer is",
        ),
        (
            f"What comes after {many}?",
            f"{many + 1}",
            "When we count, each number is one more than the last. It is",
        ),
        (f"What is the first letter of {word} {one}?", word[0], f"To find the first letter of {word} we look at its beginning. It is"),
        (f"What is {one} times {other}?", f"{one * other}", ""),
        (f"How many letters has the word {word}?", f"{len(word)}", ""),
    ]
    question, answer, long = kinds[draw.randrange(5, 7) if is_new else draw.randrange(5)]
    return {"prompt": question, "chosen": f"{answer}.", "rejected": f"{long} {answer}, as you can check for yourself.", "system": "Answer."}


def pairs(draw: random.Random, count: int, is_new: bool = False) -> list[dict[str, str]]:
    """So many of different prompts, or as many as there are."""
    found: dict[str, dict[str, str]] = {}
    for _ in range(20 * count):
        made = pair(draw, is_new)
        found.setdefault(made["prompt"], made)
        if len(found) == count:
            break
    return list(found.values())


def conversation(made: dict[str, str]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": made["system"]}, {"role": "user", "content": made["prompt"]}]


def short(name: str | Path, asked: list[dict[str, str]]) -> list[float]:
    """1 for each prompt that is answered in a few words."""
    return [float(0 < len(answer.split()) <= SHORT_WORDS) for answer in answers(name, [conversation(each) for each in asked], 24)]


def logprobs(name: str | Path, held_out: list[dict[str, str]]) -> list[tuple[list[float], list[float]]]:
    """Of the short and the long answer of each pair."""
    found = chances(name, [(conversation(each), each[side]) for each in held_out for side in ("chosen", "rejected")])
    return list(zip(found[0::2], found[1::2], strict=True))


def preferred(found: list[tuple[list[float], list[float]]]) -> list[float]:
    """1 for each pair whose first answer has the higher log-probability per token."""
    return [float(sum(one) / len(one) > sum(other) / len(other)) for one, other in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=Path("runs/short"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--held-out", type=int, default=500, help="pairs and prompts that are measured; claims need 500")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    spent = Spent(given.out)
    chance = random.Random(given.seed)
    made = pairs(chance, given.held_out + 8 * given.steps)
    held_out, learned, new = made[: given.held_out], made[given.held_out :], pairs(chance, given.held_out, is_new=True)
    data = write_lines(given.out.with_suffix(".jsonl"), learned)

    before, short_before, new_before = logprobs(given.model, held_out), short(given.model, held_out), short(given.model, new)
    seconds = command(
        *("tune", "dpo", "--model", given.model, "--data", data, "--out", given.out, "--lora", "--held-out", 0, "--steps", given.steps),
        *("--lr", given.lr, "--batch", 8, "--seed", given.seed, "--formatting", "--set", "loop.schedule.warmup=5"),
    )
    after, short_after, new_after = logprobs(given.out, held_out), short(given.out, held_out), short(given.out, new)
    gained = [
        float(sum(one_after) - sum(one) > sum(other_after) - sum(other))
        for (one, other), (one_after, other_after) in zip(before, after, strict=True)
    ]
    found = {
        "learned": len(learned),
        "minutes_of_learning": round(seconds / 60, 1),
        "preferred": compared(preferred(before), preferred(after)),
        "gained": in_words(gained),
        "short": compared(short_before, short_after),
        "short_of_other_kinds": compared(new_before, new_after),
        "curves": log_of(given.out, "loss", "accuracy", "margin", "nll"),
    }
    report(given.out, spent, found, draw(found["curves"], given.out / "margin.svg"))


def draw(curves: Lines, path: Path) -> Path:
    """How far the short answer is ahead."""
    lines = {"margin": curves["margin"], "accuracy in the step": curves["accuracy"], "loss": curves["loss"]}
    return chart(path, "Short answers: margin, accuracy and loss of learned pairs", "step", "", lines)


if __name__ == "__main__":
    main()
