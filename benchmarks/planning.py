"""How near does `herd plan this-machine` come? One JSON line per figure: measured, and what was predicted from the machine's limits.

    python benchmarks/planning.py --folder FOLDER [--models llama-3.2-1b:q4_0,llama-3.2-3b:q4_0] [--contexts 128,2048] [--prompts 256]

Models are random, of the shapes of releases, written to the folder once (--write only does that). In every round the machine is
measured as the planner does it, and then each figure, in the same process: on a machine that others use too its limits move from minute to
minute. Medians of the rounds are compared. A context is pages of the cache that were written, so nothing has to be read for it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from random_models import write_model
from record import commit, figure, machine, say

from herd.backends.base import PAGE_TOKENS, BackendOptions, Plan, Span
from herd.backends.cpu import CpuBackend
from herd.checkpoints.open import open_checkpoint
from herd.cli.plan_here import formats_of
from herd.cli.plan_here import measure as this_machine
from herd.family.catalogue import find
from herd.models.sizes import CACHE_DTYPES
from herd.planner.devices import Device
from herd.planner.formats import format_named
from herd.planner.speed import HERE, Layout, Work, decode_step, prompt_seconds
from herd.version import __version__

STEP_TOKENS, DECODES = 512, 5
CACHES = {"float16": "f16", "float32": "f32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where models are written, and found again")
    parser.add_argument("--models", default="llama-3.2-1b:q4_0,llama-3.2-1b:q8_0,llama-3.2-3b:q4_0")
    parser.add_argument("--contexts", default="128,2048,8192", help="tokens that a step of one token sees")
    parser.add_argument("--prompts", default="256", help="tokens of prompts that are read")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="only write the models")
    options = parser.parse_args()
    for each in options.models.split(","):
        shape, _, quant = each.partition(":")
        path = options.folder / f"{shape}-{quant}.gguf"
        if not path.exists():
            say(f"writing {path.name}")
            write_model(path, shape, quant)
        if not options.write:
            say(each)
            measure(shape, quant, path, options)


def measure(shape: str, quant: str, path: Path, options: argparse.Namespace) -> None:
    release, threads = find(shape), options.threads
    contexts, prompts = ([int(each) for each in text.split(",") if each] for text in (options.contexts, options.prompts))
    checkpoint = open_checkpoint(path)
    backend = CpuBackend(checkpoint.config, checkpoint.leaf, BackendOptions(threads=threads), checkpoint.release_pages)
    backend.allocate(-(-max([*contexts, *prompts]) // PAGE_TOKENS) + 1)
    page = memoryview(bytes(backend.page_bytes()))
    for number in range(backend.num_pages):
        backend.write_page(number, page)
    kind = "float16" if "kv-f16" in backend.fingerprint else "float32"
    work = Work(release.config(), format_named(quant, release, release.config()).on("cpu"), CACHE_DTYPES[kind])
    facts = {"machine": machine(), "threads": threads, "commit": commit(), "model": f"random weights, the shape of {shape}"}
    facts |= {"versions": {"herd": __version__}}
    tasks = {f"decode at {context} tokens": (context - 1, 1) for context in contexts}
    tasks |= {f"a prompt of {tokens} tokens": (0, tokens) for tokens in prompts}
    formats = formats_of([release], quant)
    found: dict[str, list[float]] = {name: [] for name in tasks}
    machines: list[Device] = []
    for _ in range(options.rounds + 1):
        machines.append(this_machine(threads, formats, CACHES[kind]))
        for name, (start, count) in tasks.items():
            seconds = [timed(backend, start, count) for _ in range(DECODES if count == 1 else 1)]
            found[name].append(statistics.median(seconds))
    here = usual(machines[1:])  # the first round is for warmth
    for name, (start, count) in tasks.items():
        said = (
            decode_step(work, here, Layout(), 1, start + 1, HERE).seconds
            if count == 1
            else prompt_seconds(work, here, Layout(), count, HERE)
        )
        assert said is not None
        tell(f"{shape} {quant}: {name}", [count / each for each in found[name][1:]], count / said, facts)
    backend.close()
    checkpoint.close()


def usual(machines: list[Device]) -> Device:
    """The medians of what was measured."""

    def median(of: Callable[[Device], float]) -> float:
        return statistics.median(of(each) for each in machines)

    first = machines[0]
    known = [each.attention for each in machines if each.attention is not None]
    return replace(
        first,
        bandwidth=median(lambda each: each.bandwidth),
        peaks={name: median(lambda each, of=name: each.peaks[of]) for name in first.peaks},
        products={name: median(lambda each, of=name: each.products[of]) for name in first.products},
        attention=statistics.median(known) if known else None,
    )


def run(backend: CpuBackend, start: int, count: int) -> None:
    """`count` tokens after `start` others, in steps of at most so many as the engine makes."""
    pages = list(range(backend.num_pages))
    for first in range(start, start + count, STEP_TOKENS):
        last = min(first + STEP_TOKENS, start + count)
        tokens = [place * 7919 % 30000 for place in range(first, last)]
        backend.step(Plan((Span(first, tokens, pages, 1 if last == start + count else 0),)))


def timed(backend: CpuBackend, start: int, count: int) -> float:
    before = time.perf_counter()
    run(backend, start, count)
    return time.perf_counter() - before


def tell(name: str, values: list[float], said: float, facts: dict[str, object]) -> None:
    error = f"{said / statistics.median(values) - 1:+.0%}"
    figure(name, values, "tokens/s", facts, engine="herd", beside={"value": said, "engine": "predicted"}, ratio=error)


if __name__ == "__main__":
    main()
