"""A small Llama 4 learns to see, from nothing: text, and drawings of coloured shapes with questions about them.

    python examples/pretrain_eyes.py runs/eyes                the whole run
    python examples/pretrain_eyes.py runs/eyes --steps 60     a short one

Its experts, chunks, layers without rotation and early fusion are those of Scout, small. The text is this repository's documentation,
or what --data names. At the end it is loaded like any model and asked what is in 500 drawings that it has not seen; and, as a check that
it is the picture that it answers from, the same while it is shown another drawing. OUT/report.json has the shares of right answers.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

from charts import Lines, chart, smoothed
from measuring import Spent, compared, in_words, log_of, report

import herd
from herd.cli.train_pretrain import write_model
from herd.cli.watching import watching
from herd.data.drawings import COLOURS, COUNTS, SHAPES, Drawing, caption, drawing
from herd.data.reading import find_files, read_records
from herd.data.tokenizer_training import train_tokenizer
from herd.training.beginning.pretrain_run import pretrain
from herd.training.settings.pretrain import PretrainSettings
from herd.training.settings.reading import read_settings
from herd.training.sources.drawn import HELD_OUT, QUESTION
from herd.training.student.allocation import tensor_memory

HERE = Path(__file__).resolve().parent
PAGES = sorted((HERE.parent / "docs").rglob("*.md"))
SIDE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", default=PAGES, help="text; default: documentation")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--asked", type=int, default=500, help="drawings at the end")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    spent = Spent(given.out)
    words = learned_words(given.out.with_name(given.out.name + "-words"), given.data)
    settings = read_settings(
        PretrainSettings,
        HERE / "pretrain_eyes.toml",
        named={
            "tokenizer": str(words),
            "loop.schedule.steps": given.steps,
            "loop.schedule.warmup": min(50, given.steps // 10),
            "loop.seed": given.seed,
            "data": [
                {"name": "text", "path": [str(path) for path in given.data], "weight": 1.0, "held_out": 0.05},
                {"name": "drawings", "kind": "drawings", "weight": 4.0},
            ],
        },
    )
    with tensor_memory(), watching(given.out.name) as told:
        pretrain(settings, given.out, write_model, told=told, resume=(given.out / "config.toml").is_file())
    learned_s = spent.seconds()["clock"]
    hits, blind = asked(given.out / "model", given.seed, given.asked)
    guesses = {"shape": 1 / len(SHAPES), "colour": 1 / len(COLOURS), "count": 1 / len(COUNTS)}
    guesses["all"] = guesses["shape"] * guesses["colour"] * guesses["count"]
    shares = {what: compared([guesses[what]] * given.asked, values) for what, values in hits.items()}
    found = {
        "steps": given.steps,
        "minutes_of_learning": round(learned_s / 60, 1),
        **{f"{what} (before: guessing)": share for what, share in shares.items()},
        **{f"{what}, shown another drawing": in_words(values) for what, values in blind.items()},
        "curves": log_of(given.out, "loss", "held_out.loss", "held_out.loss.text", "held_out.loss.drawings"),
    }
    report(given.out, spent, found, draw(found["curves"], given.out / "loss.svg"))


def learned_words(folder: Path, data: list[Path]) -> Path:
    """A vocabulary of 1,280 tokens from the text and the words about drawings, with the control tokens of a Llama 4; not made twice."""
    if not (folder / "tokenizer.json").is_file():
        texts = (str(record.value["text"]) for record in read_records(find_files(data).paths))
        said = (f"{QUESTION} {drawing(0, index, 8).caption}" for index in range(300))
        train_tokenizer(chain(texts, said), 1280, folder, manner="llama4")
    return folder


Shares = dict[str, list[float]]


def asked(model: Path, seed: int, count: int) -> tuple[Shares, Shares]:
    """Which answers are right about drawings that were never learned, and which when the next drawing is shown instead."""
    drawn = [drawing(2 * seed + HELD_OUT, index, SIDE) for index in range(count + 1)]
    with herd.load(model, chat_format="llama4") as loaded:

        def answer(shown: Drawing) -> str:
            content = [{"type": "image", "image": shown.picture}, {"type": "text", "text": QUESTION}]
            events = loaded.chat([{"role": "user", "content": content}], max_tokens=12, temperature=0)
            return loaded.collect([], events).text.strip()

        found = [answer(each) for each in drawn]
    right = [judged(said, each) for said, each in zip(found, drawn, strict=True)][:count]
    blind = [judged(said, each) for said, each in zip(found[1:], drawn, strict=False)]
    return _by_name(right), _by_name(blind)


def judged(answer: str, drawn: Drawing) -> dict[str, float]:
    """What of an answer is right: 1 or 0."""
    named = [*answer.split(), "", "", ""][:3]
    shapes = {caption({**drawn.facts, "count": count}).split()[2] for count in COUNTS}
    return {
        "shape": float(named[2] in shapes),
        "colour": float(named[1] == drawn.facts["colour"]),
        "count": float(named[0] == COUNTS[drawn.facts["count"]]),
        "all": float(answer == drawn.caption),
    }


def _by_name(judged: list[dict[str, float]]) -> Shares:
    return {what: [each[what] for each in judged] for what in judged[0]}


def draw(curves: Lines, path: Path) -> Path:
    """The loss of both kinds of data together as it is learned, and of each held out."""
    lines = {
        "learned, mean of 20 steps": smoothed(curves["loss"], 20)[19:],
        "held out: text": curves["held_out.loss.text"][1:],
        "held out: drawings": curves["held_out.loss.drawings"][1:],
    }
    return chart(path, "Eyes: loss against steps", "step", "nats a token", lines)


if __name__ == "__main__":
    main()
