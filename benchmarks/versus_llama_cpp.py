"""How fast is herd beside llama.cpp, on the same file, in the same minutes?

    python benchmarks/versus_llama_cpp.py [--model PATH] [--threads 2] [--rounds 5] [--engine herd|llama.cpp|both]

Each engine lives in a process of its own that loads the file once; rounds alternate between them, so that what else
happens on the machine meets both. Between rounds the machine's own limits are measured (memory bandwidth, int8
multiply-adds), and every speed is set against the bound that follows from them:

    decode    every weight is read once a token             bandwidth / bytes of the weights
    prompt    every matrix weight is multiplied, once a token     int8 peak / (2 * weights * tokens)   (attention not counted)

Prints one JSON line per figure; `scripts/bench` keeps them in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import commit, figure, machine, say, sha256

WORKERS = Path(__file__).with_name("workers.py")
MODEL = "smollm2-135m-instruct"
PROMPT_TOKENS = 512
DECODE_TOKENS = 128
START = [6403, 1980, 253, 655]  # "Once upon a time" for the default model, which goes on for long enough
HIGHEST_TOKEN = 49000  # below the vocabulary of the default model


class Worker:
    """A process that holds one engine."""

    def __init__(self, engine: str, model: Path, threads: int) -> None:
        self.engine = engine
        command = [sys.executable, str(WORKERS), engine, str(model), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = str(self._read()["version"])

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the {self.engine} worker ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Seen:
    """What was measured of one engine, a value a round."""

    prompt_per_s: list[float] = field(default_factory=list)
    decode_per_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


@dataclass
class Limits:
    """What the machine could do, sampled between rounds."""

    bandwidth_gb_s: list[float] = field(default_factory=list)
    int8_gops: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """What one model asks of a machine."""

    weight_bytes: int
    matrix_weights: int


def main() -> None:
    options = read_options()
    model = find_model(options.model)
    engines = ["herd", "llama.cpp"] if options.engine == "both" else [options.engine]
    workers = [Worker(engine, model, options.threads) for engine in engines]
    seen = {engine: Seen() for engine in engines}
    limits, work = Limits(), work_of(model)
    for number in range(options.rounds + 1):
        say(f"round {number} of {options.rounds}" + (" (warms up, not counted)" if number == 0 else ""))
        measure_limits(limits, options.threads)
        for worker in workers if number % 2 else reversed(workers):
            measure(worker, seen[worker.engine], number, counted=number > 0)
    for worker in workers:
        seen[worker.engine].peak_mb.append(worker.ask(do="memory")["bytes"] / 1e6)
        worker.close()
    for _ in range(options.rounds):
        for engine in engines:
            seen[engine].first_token_s.append(time_first_token(engine, model, options.threads))
    facts = {
        "machine": machine(),
        "threads": options.threads,
        "commit": commit(),
        "model": model.name,
        "model_sha256": sha256(model),
        "model_mb": round(model.stat().st_size / 1e6, 3),
        "versions": {worker.engine: worker.version for worker in workers},
    }
    report(seen, limits, work, facts)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=MODEL, help="a GGUF file, or the name of a model that was pulled")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; one more warms up")
    parser.add_argument("--engine", choices=["both", "herd", "llama.cpp"], default="both")
    return parser.parse_args()


def measure(worker: Worker, seen: Seen, number: int, *, counted: bool) -> None:
    """One round: a prompt that was never seen before, then a greedy answer to a short one."""
    chance = random.Random(number)
    fresh = [chance.randrange(1000, HIGHEST_TOKEN) for _ in range(PROMPT_TOKENS)]
    prompt_s = worker.ask(do="prompt", tokens=fresh)["seconds"]
    decoded = worker.ask(do="decode", tokens=START, count=DECODE_TOKENS)
    if len(decoded["tokens"]) < DECODE_TOKENS // 2:
        raise SystemExit(f"{worker.engine} ended its answer after {len(decoded['tokens'])} tokens: too few to time")
    if counted:
        seen.prompt_per_s.append(PROMPT_TOKENS / prompt_s)
        seen.decode_per_s.append((len(decoded["tokens"]) - 1) / decoded["seconds"])


def time_first_token(engine: str, model: Path, threads: int) -> float:
    """Seconds from starting a process to the first token of a short prompt in its output; the file is warm."""
    command = [sys.executable, str(WORKERS), engine, str(model), str(threads), json.dumps(START)]
    before = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "token":
            raise SystemExit(f"the {engine} worker printed no token")
        return time.perf_counter() - before


def measure_limits(limits: Limits, threads: int) -> None:
    """One sample of what the machine can do, by the same kernels that `herd bench` uses."""
    from herd.backends.cpu.limits import measure_bandwidth, measure_int8

    limits.bandwidth_gb_s.append(measure_bandwidth(threads) / 1e9)
    limits.int8_gops.append(measure_int8(threads) / 1e9)


def work_of(model: Path) -> Work:
    from herd.checkpoints.open import open_checkpoint
    from herd.models.weights import Kind

    checkpoint = open_checkpoint(model)
    try:
        weights = sum(spec.count for spec in checkpoint.specs if spec.kind is Kind.MATRIX)
        return Work(checkpoint.num_bytes, weights)
    finally:
        checkpoint.close()


def find_model(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    from herd.family.store import locate

    found = locate(name)
    if found is None:
        raise SystemExit(f"{name} is neither a file nor a model that was pulled; run: herd pull {name}")
    return found.path


def report(seen: dict[str, Seen], limits: Limits, work: Work, facts: dict[str, Any]) -> None:
    bandwidth, int8 = statistics.median(limits.bandwidth_gb_s), statistics.median(limits.int8_gops)
    figure("memory bandwidth", limits.bandwidth_gb_s, "GB/s", facts)
    figure("int8 multiply-add peak", limits.int8_gops, "GOPS", facts)
    decode_bound = {"value": round(bandwidth * 1e9 / work.weight_bytes, 1), "what": "measured bandwidth / bytes of the weights"}
    prompt_bound = {"value": round(int8 * 1e9 / (2 * work.matrix_weights), 1), "what": "measured int8 peak / operations of the matrices"}
    tables: list[tuple[str, str, Callable[[Seen], list[float]], dict[str, Any] | None]] = [
        (f"decode, {DECODE_TOKENS} tokens", "tokens/s", lambda s: s.decode_per_s, decode_bound),
        (f"prompt, {PROMPT_TOKENS} tokens", "tokens/s", lambda s: s.prompt_per_s, prompt_bound),
        ("process start to first token", "s", lambda s: s.first_token_s, None),
        ("peak memory", "MB", lambda s: s.peak_mb, None),
    ]
    for name, unit, values, bound in tables:
        for engine, measured in seen.items():
            more: dict[str, Any] = {"engine": engine}
            if bound is not None:
                more |= {"bound": bound, "share": round(statistics.median(values(measured)) / bound["value"], 3)}
            figure(name, values(measured), unit, facts, **more)
        if len(seen) == 2:
            ratios = [ours / theirs for ours, theirs in zip(values(seen["herd"]), values(seen["llama.cpp"]), strict=True)]
            figure(f"{name}: herd / llama.cpp", ratios, "ratio", facts)


if __name__ == "__main__":
    main()
