"""How much of what the machine can do does a step reach, for each format of weights? And beside llama.cpp, on the same file?

    python benchmarks/kernels.py [--shape 1b] [--quants q4_0,q8_0] [--questions decode,prompt,drafts,together] [--threads 2] [--rounds 5]
                                 [--engine both|herd] [--isa portable] [--folder FOLDER]

Models are random (random_models.py) and written to a temporary folder, or once to --folder. Each engine lives in a process of its own;
rounds alternate between them, and the machine's limits are measured in every round.

  decode      a step of one token
  prompt      a step of 512 tokens with nothing in the cache; --prompt-tokens changes it (4096 give each of 128 experts some 32)
  drafts      steps of 2, 4 and 8 tokens of one sequence, logits after each: what it costs to try drafted tokens. `cost` is the time
              of such a step over that of one token
  together    steps of one token of each of 8, 16 and 32 sequences

The bound of a step is the longer of two times: that of reading its weights once, and that of its multiplications at the peak
of the arithmetic that the format computes in. Attention is left out of it, and so the share is a little less than what the products reach;
of a prompt of more than 512 tokens there is a second figure, of the time that is not attention's.
With --isa, herd alone is measured with another instruction set than the best (`portable`: none in particular), beside what that set's own
loops read and multiply. Prints one JSON line per figure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from random_models import SHAPES, write_model
from record import commit, figure, machine, say

from herd._core import available_isas
from herd.backends.cpu.limits import measure_bandwidth, measure_peak, multiplies_bf16
from herd.bench.bounds import multiplied_in
from herd.dtypes import BY_NAME
from herd.models.architecture import Config, architecture_of
from herd.models.weights import Kind, stored_bytes

WORKERS = Path(__file__).with_name("step_workers.py")
DEPTH, SHORT = 64, 8
LEAST_STEP_TOKENS = 512
READING = "read bandwidth"


@dataclass(frozen=True)
class Question:
    """A step of `tokens` of each of `sequences`, and how often it is repeated in a round."""

    name: str
    sequences: int
    tokens: int
    depth: int
    all_logits: bool
    times: int

    @property
    def rows(self) -> int:
        return self.sequences * self.tokens

    @property
    def is_long(self) -> bool:
        """Whether attention takes much of it."""
        return self.tokens > LEAST_STEP_TOKENS


def questions(chosen: list[str], prompt_tokens: int) -> list[Question]:
    one = Question("decode", 1, 1, DEPTH, True, 7)
    groups = {
        "decode": [one],
        "prompt": [Question(f"prompt of {prompt_tokens}", 1, prompt_tokens, 0, False, 1)],
        "drafts": [one, *(Question(f"step of {count} tokens", 1, count, DEPTH, True, 5) for count in (2, 4, 8))],
        "together": [Question(f"{count} sequences", count, 1, SHORT, True, 3) for count in (8, 16, 32)],
    }
    if unknown := set(chosen) - set(groups):
        raise SystemExit(f"unknown questions: {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    return list(dict.fromkeys(question for name in groups if name in chosen for question in groups[name]))


class Worker:
    """A process that holds one engine."""

    def __init__(self, engine: str, model: Path, threads: int, step_tokens: int) -> None:
        self.engine = engine
        command = [sys.executable, str(WORKERS), engine, str(model), str(threads), str(step_tokens)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.version = str(self._read()["version"])
        self.attention_s = 0.0
        """Of one step of the last question, where it is long."""

    def seconds(self, question: Question) -> float:
        """Median of one round."""
        assert self._process.stdin is not None
        step = {"sequences": question.sequences, "tokens": question.tokens, "depth": question.depth, "all_logits": question.all_logits}
        self._process.stdin.write(json.dumps({**step, "times": question.times, "attention": question.is_long}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self.attention_s = float(answer.get("attention_s", 0.0))
        return statistics.median(answer["seconds"])

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
class Limits:
    """What the machine could do in the rounds of one file: bytes/s, and operations/s of the kinds that were needed."""

    bandwidth: list[float] = field(default_factory=list)
    operations: list[float] = field(default_factory=list)

    def measure(self, quant: str, threads: int) -> None:
        self.bandwidth.append(measure_bandwidth(threads))
        self.operations.append(measure_peak(peak_of(quant), threads))


def peak_of(quant: str) -> str:
    """The number format that weights stored so are multiplied in."""
    return multiplied_in(BY_NAME[quant], "int8", has_bf16=multiplies_bf16())


def bounds_s(cfg: Config, quant: str, question: Question, limits: Limits) -> dict[str, float]:
    """The least time of a step by each limit. With experts, of as many as tokens that choose by chance would reach."""
    read, operations = 0.0, 0.0
    outputs = question.rows if question.all_logits else question.sequences
    for spec in architecture_of(cfg).tensors(cfg):
        used, rows = 1.0, question.rows
        if spec.kind is Kind.EXPERTS:
            experts = spec.shape[0]
            used, rows = 1 - (1 - 1 / experts) ** question.rows, question.rows / experts
        elif spec.kind is Kind.HEAD or (spec.kind is Kind.EMBEDDING and cfg.tied_embeddings):
            rows = outputs
        elif spec.kind is Kind.EMBEDDING or spec.kind.is_vector:
            continue
        read += used * stored_bytes(BY_NAME[quant], spec.shape)
        operations += 2.0 * spec.count * rows
    return {
        READING: read / statistics.median(limits.bandwidth),
        f"{peak_of(quant)} peak": operations / statistics.median(limits.operations),
    }


def measure(shape: str, quant: str, options: argparse.Namespace, folder: Path, facts: dict[str, Any]) -> None:
    path = folder / f"{shape}-{quant}.gguf"
    cfg = SHAPES[shape][0] if path.exists() else write_model(path, shape, quant)
    engines = ["herd", "llama.cpp"] if options.engine == "both" and options.isa is None else ["herd"]
    step_tokens = max(LEAST_STEP_TOKENS, options.prompt_tokens)
    workers = [Worker(engine, path, options.threads, step_tokens) for engine in engines]
    asked = questions(options.questions.split(","), options.prompt_tokens)
    limits, seen = Limits(), {(engine, question.name): list[float]() for engine in engines for question in asked}
    for number in range(options.rounds + 1):
        limits.measure(quant, options.threads)
        for question in asked:
            for worker in workers if number % 2 else reversed(workers):
                seconds = worker.seconds(question)
                if number:  # the first round warms up
                    seen[worker.engine, question.name].append(seconds)
                    if question.is_long and worker.engine == "herd":
                        seen.setdefault(("herd", f"products of a {question.name}"), []).append(seconds - worker.attention_s)
    facts = {**facts, "versions": {worker.engine: worker.version for worker in workers}, "shape": shape, "quant": quant}
    facts |= {} if options.isa is None else {"isa": options.isa}
    for worker in workers:
        worker.close()
    report(cfg, quant, asked, limits, seen, facts)


def report(
    cfg: Config, quant: str, asked: list[Question], limits: Limits, seen: dict[tuple[str, str], list[float]], facts: dict[str, Any]
) -> None:
    at = f"{facts['shape']} {quant}" + (f" {facts['isa']}" if "isa" in facts else "")
    measured = {"bandwidth_gb_s": statistics.median(limits.bandwidth) / 1e9, "peak_gops": statistics.median(limits.operations) / 1e9}
    facts = {**facts, **{name: round(value, 1) for name, value in measured.items()}}
    for question in asked:
        ours = seen["herd", question.name]
        bounds = bounds_s(cfg, quant, question, limits)
        what = max(bounds, key=bounds.__getitem__)
        least = bounds[what]
        bound = {"value": float(f"{question.rows / least:.4g}"), "what": what}
        more: dict[str, Any] = {"engine": "herd", "bound": bound, "share": round(least / statistics.median(ours), 3)}
        more["share_of_bandwidth"] = round(bounds[READING] / statistics.median(ours), 3)
        for engine, name in seen:
            if name == question.name and engine != "herd":
                theirs = seen[engine, name]
                more["beside"] = {"engine": engine, "value": float(f"{question.rows / statistics.median(theirs):.4g}")}
                more["ratio"] = round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2)
        if question.name.startswith("step of"):
            for engine in {engine for engine, _ in seen}:
                costs = [a / b for a, b in zip(seen[engine, question.name], seen[engine, "decode"], strict=True)]
                more["cost" if engine == "herd" else "cost_beside"] = round(statistics.median(costs), 2)
        figure(f"{at}: {question.name}", [question.rows / seconds for seconds in ours], "tokens/s", facts, **more)
        if (products := seen.get(("herd", f"products of a {question.name}"))) is not None:
            alone = {"engine": "herd", "bound": bound, "share": round(least / statistics.median(products), 3)}
            figure(f"{at}: products of a {question.name}", [question.rows / seconds for seconds in products], "tokens/s", facts, **alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--quants", default="q4_0,q4_1,q8_0,q4_k,q6_k,iq4_xs,bf16")
    parser.add_argument("--questions", default="decode,prompt,drafts,together")
    parser.add_argument("--prompt-tokens", type=int, default=512, choices=range(1, 8193), metavar="1..8192")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; one more warms up")
    parser.add_argument("--engine", choices=["both", "herd"], default="both")
    parser.add_argument("--isa", choices=available_isas(), default=None, help="herd alone, with this instruction set")
    parser.add_argument("--folder", type=Path, default=None, help="where models are written, and found again")
    options = parser.parse_args()
    if options.isa is not None:
        os.environ["HERD_ISA"] = options.isa  # for the limits here, and for the worker
    folder = options.folder or Path(tempfile.mkdtemp(prefix="herd-kernels-"))
    facts = {"machine": machine(), "threads": options.threads, "commit": commit(), "model": f"random weights, {SHAPES[options.shape][1]}"}
    try:
        for quant in options.quants.split(","):
            say(f"{options.shape} {quant}")
            measure(options.shape, quant, options, folder, facts)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
