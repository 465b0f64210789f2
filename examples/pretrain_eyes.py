"""A small Llama 4 learns to see, from nothing: text, and drawings of coloured shapes with questions about them.

    python examples/pretrain_eyes.py runs/eyes                the whole run, meant for half an hour on two cores (not yet measured)
    python examples/pretrain_eyes.py runs/eyes --steps 60     a short one

Its experts, chunks, layers without rotation and early fusion are those of Scout, small. The text is this repository's documentation,
or what --data names. At the end it is loaded like any model and asked what is in 500 drawings that it has not seen.
"""

from __future__ import annotations

import argparse
import json
from itertools import chain
from pathlib import Path

import herd
from herd.cli.train_pretrain import write_model
from herd.cli.train_progress import printed
from herd.data.drawings import COLOURS, COUNTS, SHAPES, caption, drawing
from herd.data.reading import find_files, read_records
from herd.data.tokenizer_training import train_tokenizer
from herd.training.allocation import keep_memory
from herd.training.drawn import HELD_OUT, QUESTION
from herd.training.pretrain_run import pretrain
from herd.training.pretrain_settings import PretrainSettings
from herd.training.settings import read_settings

HERE = Path(__file__).resolve().parent
SIDE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", default=[HERE.parent / "docs" / "explain"], help="text; default: documentation")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--asked", type=int, default=500, help="drawings at the end")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
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
                {"name": "text", "path": [str(path) for path in given.data], "weight": 1.0},
                {"name": "drawings", "kind": "drawings", "weight": 4.0},
            ],
        },
    )
    keep_memory()
    pretrain(settings, given.out, write_model, told=printed(), resume=(given.out / "config.toml").is_file())
    found = asked(given.out / "model", given.seed, given.asked)
    print(json.dumps(found))
    (given.out / "asked.json").write_text(json.dumps(found, indent=1) + "\n")


def learned_words(folder: Path, data: list[Path]) -> Path:
    """A vocabulary of 1,280 tokens from the text and the words about drawings, with the control tokens of a Llama 4; not made twice."""
    if not (folder / "tokenizer.json").is_file():
        texts = (str(record.value["text"]) for record in read_records(find_files(data).paths))
        said = (f"{QUESTION} {drawing(0, index, 8).caption}" for index in range(300))
        train_tokenizer(chain(texts, said), 1280, folder, manner="llama4")
    return folder


def asked(model: Path, seed: int, count: int) -> dict[str, float]:
    """Shares of right answers about drawings that were never learned, and what guessing would give."""
    right = dict.fromkeys(("shape", "colour", "count", "all"), 0)
    with herd.load(model, chat_format="llama4") as loaded:
        for index in range(count):
            drawn = drawing(2 * seed + HELD_OUT, index, SIDE)
            content = [{"type": "image", "image": drawn.picture}, {"type": "text", "text": QUESTION}]
            answer = loaded.chat([{"role": "user", "content": content}], max_tokens=12, temperature=0).text.strip()
            named = [*answer.split(), "", "", ""][:3]
            shapes = {caption({**drawn.facts, "count": count}).split()[2] for count in COUNTS}
            hits = {
                "shape": named[2] in shapes,
                "colour": named[1] == drawn.facts["colour"],
                "count": named[0] == COUNTS[drawn.facts["count"]],
                "all": answer == drawn.caption,
            }
            for what, is_right in hits.items():
                right[what] += is_right
    guessed = {"shape": 1 / len(SHAPES), "colour": 1 / len(COLOURS), "count": 1 / len(COUNTS)}
    return {"asked": count, **{what: hits / count for what, hits in right.items()}, **{f"guessed_{k}": v for k, v in guessed.items()}}


if __name__ == "__main__":
    main()
