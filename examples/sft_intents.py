"""Supervised fine-tuning in one command: a model learns what a customer of a bank wants.

    python examples/sft_intents.py --data banking77/ --out runs/intents

`--data` is a folder with train.csv and test.csv of the Banking77 questions (text, category; Casanueva et al. 2020, arXiv 2003.04807).
The model learns to answer a question with one of its 77 categories, by LoRA, from as many questions as `--learned` says, and then
answers questions of test.csv, which it has not seen; an answer is right if it is the category, letter by letter. Before, it is asked in
two ways: as it will be asked afterwards, and with all categories listed for it, where an answer is right that has the category anywhere in
it. Everything is in OUT/report.json.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from charts import Lines, chart, smoothed
from measuring import Spent, answers, command, compared, in_words, log_of, report, write_lines

ASKED = "Which support topic is this?"


def questions(path: Path, count: int, seed: int) -> list[tuple[str, str]]:
    """(question, category) of `count` rows, drawn without putting back."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["text"].strip(), row["category"].replace("_", " ").strip()) for row in csv.DictReader(file)]
    return random.Random(seed).sample(rows, min(count, len(rows)))


def conversation(question: str, system: str = ASKED) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def right(found: list[str], wanted: list[tuple[str, str]]) -> list[float]:
    """1 for each answer that is the category."""
    return [float(answer.lower() == category.lower()) for answer, (_, category) in zip(found, wanted, strict=True)]


def named(found: list[str], wanted: list[tuple[str, str]]) -> list[float]:
    """1 for each answer that has the category anywhere in it."""
    return [float(category.lower() in answer.lower()) for answer, (_, category) in zip(found, wanted, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and test.csv")
    parser.add_argument("--out", type=Path, default=Path("runs/intents"))
    parser.add_argument("--learned", type=int, default=4000, help="questions of train.csv; each is seen once")
    parser.add_argument("--asked", type=int, default=1000, help="questions of test.csv")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    spent = Spent(given.out)
    learned = questions(given.data / "train.csv", given.learned, given.seed)
    asked = questions(given.data / "test.csv", given.asked, given.seed)
    records = [{"messages": [*conversation(text), {"role": "assistant", "content": intent}]} for text, intent in learned]
    data = write_lines(given.out.with_suffix(".jsonl"), records)

    listed = "Answer with the topic of the question, one of: " + ", ".join(sorted({intent for _, intent in learned})) + "."
    plain = [conversation(text) for text, _ in asked]
    before = right(answers(given.model, plain, 16), asked)
    before_listed = named(answers(given.model, [conversation(text, listed) for text, _ in asked], 32), asked)
    minutes = (
        command(
            *("tune", "sft", "--model", given.model, "--data", data, "--out", given.out, "--lora", "--epochs", 1, "--batch", 16),
            *("--lr", given.lr, "--seed", given.seed, "--held-out", 100, "--evaluate-every", 50, "--set", "loop.schedule.warmup=10"),
        )
        / 60
    )
    after = right(answers(given.out, plain, 16), asked)
    found = {
        "learned": len(learned),
        "minutes_of_learning": round(minutes, 1),
        "accuracy": compared(before, after),
        "accuracy_before_with_all_topics_listed": in_words(before_listed),
        "gain_over_listed": compared(before_listed, after),
        "curves": log_of(given.out, "loss", "held_out.loss"),
    }
    report(given.out, spent, found, draw(found["curves"], given.out / "loss.svg"))


def draw(curves: Lines, path: Path) -> Path:
    """The loss, of ten steps together, and of what is held out."""
    lines = {"learned, mean of ten steps": smoothed(curves["loss"], 10)[9:], "held out": curves["held_out.loss"][1:]}
    return chart(path, "Intents: loss against steps", "step", "nats a token", lines)


if __name__ == "__main__":
    main()
