"""What speculation gains, and that it changes nothing. One JSON line per figure.

    python benchmarks/speculation.py MODEL [--draft lookup] [--rounds 5] [--threads 2] [--tokens 160] [--tasks edit,code,...]

--draft is lookup, or a smaller model with the same vocabulary: what examples/distill_layers.py makes of MODEL, say, or some of MODEL's own
layers, which it begins with (OUT-start). Figures by a model have its name.

Six kinds of work, each answered greedily with and without drafts, by turns, from a prompt that is in the cache already:

  edit        a text with one name replaced by another throughout, after two shorter examples of the same edit
  code        more of a class whose methods are alike, made by rule
  library     more of a module of Python's own library, from its middle
  summary     a text, and what it says in short
  story       something new, where little can be foretold
  sampled     the same, drawn at temperature 1: where nothing can be foretold

A figure is tokens per second with drafts over tokens per second without, each round by itself: median and range. `identical` says
that all tokens and log-probabilities were the same in all rounds.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record import commit, figure, machine, say, sha256

import herd
from herd.version import __version__

# Abraham Lincoln at Gettysburg, 1863; in the public domain.
ADDRESS = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and dedicated "
    "to the proposition that all men are created equal. Now we are engaged in a great civil war, testing whether that nation, or any "
    "nation so conceived and so dedicated, can long endure. We are met on a great battle-field of that war. We have come to dedicate "
    "a portion of that field, as a final resting place for those who here gave their lives that that nation might live. It is "
    "altogether fitting and proper that we should do this. But, in a larger sense, we can not dedicate, we can not consecrate, we can "
    "not hallow this ground. The brave men, living and dead, who struggled here, have consecrated it, far above our poor power to add "
    "or detract. The world will little note, nor long remember what we say here, but it can never forget what they did here."
)
FIELDS = ("name", "address", "city", "country", "email", "phone", "company", "website")
NAMES = ("nation", "country")


def edit() -> str:
    sentences = ADDRESS.split(". ")
    shown = [". ".join(sentences[:count]) + "." for count in (1, 2)] + [ADDRESS]
    parts = [f"Text: {text}\nThe same text with '{NAMES[0]}' replaced by '{NAMES[1]}': {text.replace(*NAMES)}\n\n" for text in shown[:2]]
    return "".join(parts) + f"Text: {shown[2]}\nThe same text with '{NAMES[0]}' replaced by '{NAMES[1]}':"


def code() -> str:
    method = '    def get_{0}(self):\n        """Return the {0} of this customer."""\n        return self._{0}\n\n'
    setter = '    def set_{0}(self, {0}):\n        """Set the {0} of this customer."""\n        self._{0} = {0}\n\n'
    fields = "".join(f"        self._{name} = None\n" for name in FIELDS)
    methods = "".join(method.format(name) + setter.format(name) for name in FIELDS[:3])
    return f"class Customer:\n    def __init__(self):\n{fields}\n{methods}    def get_{FIELDS[3]}(self):\n"


TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "edit": (edit(), {"temperature": 0.0}),
    "code": (code(), {"temperature": 0.0}),
    "library": (inspect.getsource(textwrap)[6000:9000], {"temperature": 0.0}),
    "summary": (f"{ADDRESS}\n\nIn short, the speech says that", {"temperature": 0.0}),
    "story": ("The old lighthouse keeper had not spoken to anyone for", {"temperature": 0.0}),
    "sampled": ("The old lighthouse keeper had not spoken to anyone for", {"temperature": 1.0, "top_p": 1.0, "seed": 7}),
}


def answer(model: herd.Model, prompt: str, length: int, settings: dict[str, Any]) -> tuple[float, Any]:
    """Tokens per second after a prompt that was computed before, and the answer."""
    model.generate(prompt, max_tokens=1, **settings)
    before = time.perf_counter()
    out = model.generate(prompt, max_tokens=length, **settings)
    return len(out.token_ids) / (time.perf_counter() - before), out


def measure(name: str, plain: herd.Model, drafting: herd.Model, arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    prompt, settings = TASKS[name]
    gains, rates, identical = [], ([], []), True  # type: tuple[list[float], tuple[list[float], list[float]], bool]
    for turn in range(arguments.rounds + 1):
        order = (plain, drafting) if turn % 2 else (drafting, plain)
        found = {model: answer(model, prompt, arguments.tokens, settings) for model in order}
        (without, one), (with_drafts, other) = found[plain], found[drafting]
        identical &= (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)
        if turn:  # the first round is for what happens once
            gains.append(with_drafts / without)
            rates[0].append(without)
            rates[1].append(with_drafts)
    more = {"tokens": len(one.token_ids), "identical": identical, "tokens_per_s": [[round(rate, 1) for rate in each] for each in rates]}
    by = "" if facts["draft"] == "lookup" else f" by {facts['draft']}"
    figure(f"speculation{by}, {name}", gains, "times", facts, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description="What speculation gains.")
    parser.add_argument("model")
    parser.add_argument("--draft", default="lookup", help="lookup, or a smaller model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--tasks", default=",".join(TASKS))
    arguments = parser.parse_args()
    options: dict[str, Any] = {"threads": arguments.threads, "context": 2048}
    with herd.load(arguments.model, **options) as plain, herd.load(arguments.model, draft=arguments.draft, **options) as drafting:
        path = Path(str(plain.path))
        facts = {"machine": machine(), "threads": arguments.threads, "commit": commit(), "model": plain.name}
        facts["draft"] = arguments.draft if arguments.draft == "lookup" else Path(arguments.draft).stem
        facts |= {"model_sha256": sha256(path) if path.is_file() else None, "versions": {"herd": __version__}}
        for name in arguments.tasks.split(","):
            say(name)
            measure(name, plain, drafting, arguments, facts)


if __name__ == "__main__":
    main()
