"""What do small activations, keys and values cost in perplexity? One JSON line per figure.

    python benchmarks/perplexity.py MODEL TEXT [--windows 24] [--settings activations,cache] [--threads 2]

One model with several settings reads the same windows of TEXT, spread evenly over it, of 1,024 tokens each, of which the first 24 are not
counted. A perplexity is of all counted tokens. What a setting costs is how much larger its perplexity is than that of another setting.
Standard errors are over windows; that of a difference is small, as both read the same.

  activations   int8 against float32, keys and values in float32 both times
  cache         keys and values in float16, int8 and int4 against float32, activations in int8
"""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record import commit, figure, machine, say, sha256

from herd.api import Model, load
from herd.evals.rows import next_token_logprobs
from herd.version import __version__

WINDOW, FIRST = 1024, 24
Setting = tuple[str, str]
"""Activations, and keys and values."""
BASE: Setting = ("int8", "float32")
ASKED: dict[str, list[tuple[Setting, Setting]]] = {
    "activations": [(BASE, ("float32", "float32"))],
    "cache": [(("int8", kept), BASE) for kept in ("float16", "int8", "int4")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=24, help="how many; 0: all that the text has")
    parser.add_argument("--settings", default=",".join(ASKED))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    pairs = [pair for name in options.settings.split(",") for pair in ASKED[name]]
    settings = list(dict.fromkeys(each for pair in pairs for each in pair))
    with ExitStack() as stack:
        models = {
            each: stack.enter_context(load(options.model, activations=each[0], kv_cache=each[1], threads=options.threads, context=WINDOW))
            for each in settings
        }
        windows = windows_of(models[settings[0]], options.text.read_text(encoding="utf-8"), options.windows)
        costs = read(models, windows)
    facts = {"model": options.model.name, "model_mb": round(options.model.stat().st_size / 1e6), "model_sha256": sha256(options.model)}
    facts |= {"text": options.text.name, "tokens": len(windows) * (WINDOW - FIRST), "windows": len(windows)}
    facts |= {"machine": machine(), "threads": options.threads, "commit": commit(), "versions": {"herd": __version__}}
    for each in settings:
        value = math.exp(costs[each].mean())
        error = rounded(value * standard_error(costs[each]))
        figure(named(each), [value], "of perplexity", facts, engine="herd", error=error)
    for one, other in pairs:
        more = costs[one] - costs[other]
        change = 100 * math.expm1(more.mean())
        figure(f"{named(one)}, more than {named(other)}", [change], "%", facts, engine="herd", error=rounded(100 * standard_error(more)))


def standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def rounded(error: float) -> float:
    return float(f"{error:.2g}")


def named(setting: Setting) -> str:
    return f"activations {setting[0]}, keys and values {setting[1]}"


def windows_of(model: Model, text: str, count: int) -> list[list[int]]:
    """Windows side by side, all of them or `count` that are spread evenly."""
    tokens = model.tokenizer.encode(text)
    starts = range(0, len(tokens) - WINDOW + 1, WINDOW - FIRST)
    chosen = starts if not count or count >= len(starts) else [starts[at * len(starts) // count] for at in range(count)]
    if len(chosen) < 2:
        raise SystemExit(f"The text has {len(tokens)} tokens; two windows of {WINDOW} are the least.")
    return [tokens[start : start + WINDOW] for start in chosen]


def read(models: dict[Setting, Model], windows: list[list[int]]) -> dict[Setting, NDArray[np.float64]]:
    """Mean cost of a counted token in each window, in nats, by setting."""
    costs: dict[Setting, list[float]] = {each: [] for each in models}
    for number, tokens in enumerate(windows, 1):
        say(f"window {number} of {len(windows)}")
        for each, model in models.items():
            costs[each].append(-float(np.concatenate(list(next_token_logprobs(model.provider, tokens, FIRST))).mean()))
    return {each: np.array(values) for each, values in costs.items()}


if __name__ == "__main__":
    main()
