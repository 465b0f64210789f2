"""How near does `herd plan this-machine` come? One JSON line per figure: measured, and what was predicted from the machine's limits.

    python benchmarks/planning.py --folder FOLDER [--models llama-3.2-1b:q4_0,llama-3.2-3b:q4_0] [--contexts 128,2048] [--prompts 256]

Models are random, of the shapes of releases, written to the folder once (--write only does that). The limits are measured in the same
process right before and after each figure, as the planner does; a context is pages of the cache that were written, so nothing has to be
read for it.
"""

from __future__ import annotations

import argparse
import datetime
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
from herd.backends.cpu.limits import measure_bandwidth, measure_float32, measure_int8
from herd.checkpoints.open import open_checkpoint
from herd.family.catalogue import find
from herd.models.sizes import CACHE_DTYPES
from herd.planner.devices import Device
from herd.planner.formats import format_named
from herd.planner.reading import Source
from herd.planner.speed import HERE, Layout, Work, decode_step, prompt_seconds
from herd.version import __version__

STEP_TOKENS = 512


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
    for context in contexts:
        before = limits(threads)
        seconds = timed(lambda at=context: run(backend, at - 1, 1), options.rounds)
        said = decode_step(work, between(before, limits(threads)), Layout(), 1, context, HERE).seconds
        tell(f"{shape} {quant}: decode at {context} tokens", [1 / each for each in seconds], 1 / said, facts)
    for tokens in prompts:
        before = limits(threads)
        seconds = timed(lambda count=tokens: run(backend, 0, count), max(2, options.rounds // 2))
        said = prompt_seconds(work, between(before, limits(threads)), Layout(), tokens, HERE)
        assert said is not None
        tell(f"{shape} {quant}: a prompt of {tokens} tokens", [tokens / each for each in seconds], tokens / said, facts)
    backend.close()
    checkpoint.close()


def limits(threads: int) -> Device:
    """This machine as `herd plan this-machine` sees it."""
    bandwidth, int8, float32 = measure_bandwidth(threads), measure_int8(threads), measure_float32(threads)
    now, peaks = Source("measured", "measured", datetime.date.today()), {"int8": int8, "fp32": float32}
    sources = dict.fromkeys(("bandwidth", *peaks), now)
    return Device(name="here", title="here", kind="cpu", bandwidth=bandwidth, peaks=peaks, sources=sources)


def between(one: Device, other: Device) -> Device:
    """The machine as it was between two measurements: on one that others use too its limits move from minute to minute."""
    peaks = {name: (rate + other.peaks[name]) / 2 for name, rate in one.peaks.items()}
    return replace(one, bandwidth=(one.bandwidth + other.bandwidth) / 2, peaks=peaks)


def run(backend: CpuBackend, start: int, count: int) -> None:
    """`count` tokens after `start` others, in steps of at most so many as the engine makes."""
    pages = list(range(backend.num_pages))
    for first in range(start, start + count, STEP_TOKENS):
        last = min(first + STEP_TOKENS, start + count)
        tokens = [place * 7919 % 30000 for place in range(first, last)]
        backend.step(Plan((Span(first, tokens, pages, 1 if last == start + count else 0),)))


def timed(step: Callable[[], None], rounds: int) -> list[float]:
    step()
    found = []
    for _ in range(rounds):
        before = time.perf_counter()
        step()
        found.append(time.perf_counter() - before)
    return found


def tell(name: str, values: list[float], said: float, facts: dict[str, object]) -> None:
    error = f"{said / statistics.median(values) - 1:+.0%}"
    figure(name, values, "tokens/s", facts, engine="herd", beside={"value": said, "engine": "predicted"}, ratio=error)


if __name__ == "__main__":
    main()
