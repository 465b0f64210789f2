"""What the real runs of this folder have in common: commands as a user types them, answers to many questions, and standard errors."""

from __future__ import annotations

import json
import math
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import herd
from herd.bench.report import commit, machine
from herd.errors import HerdError
from herd.files import atomic_write

AT_ONCE = 16
"""Questions that are answered at the same time."""

KEPT_S = 5.0
"""Seconds between two notes of what a run has taken so far."""

CURVES = "curves"
"""Figures of this name are whole curves: kept, not printed."""


def command(*words: object) -> float:
    """Runs `herd WORDS`, shown as it is typed; its seconds. `SystemExit` with the status of a command that failed."""
    typed = [str(word) for word in words]
    print(f"$ herd {shlex.join(typed)}", file=sys.stderr, flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "herd", *typed], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return time.monotonic() - began


def answers(name: str | Path, asked: Sequence[Sequence[dict[str, Any]]], max_tokens: int) -> list[str]:
    """What a model answers to each conversation, always the likeliest token, several at once."""
    with herd.load(name, parallel=AT_ONCE) as model:

        def answer(messages: Sequence[dict[str, Any]]) -> str:
            return model.collect([], model.chat(messages, max_tokens=max_tokens, temperature=0.0)).text.strip()

        with ThreadPoolExecutor(AT_ONCE) as workers:
            return list(workers.map(answer, asked))


def costs(name: str | Path, texts: Sequence[str]) -> list[float]:
    """What a token of each text costs a model, in nats: the mean of - log p over all but the first."""
    with herd.load(name) as model:
        return [-sum(found) / len(found) for found in (_logprobs(model, model.provider.encode(text), 1) for text in texts)]


def chances(name: str | Path, answered: Sequence[tuple[Sequence[dict[str, Any]], str]]) -> list[list[float]]:
    """log p of each token of an answer to a conversation, for each of them."""
    found = []
    with herd.load(name) as model:
        for messages, answer in answered:
            asked = model.chat_token_ids(model.chat_request(messages))
            found.append(_logprobs(model, [*asked, *model.tokenizer.encode(answer, bos=False)], len(asked)))
    return found


def _logprobs(model: herd.Model, ids: list[int], first: int) -> list[float]:
    """log p of each token from place `first` on."""
    logits_TV = model.logits(ids)[first - 1 : -1]
    logits_TV -= logits_TV.max(axis=1, keepdims=True)
    chosen_T = logits_TV[np.arange(len(logits_TV)), ids[first:]]
    found: list[float] = (chosen_T - np.log(np.exp(logits_TV).sum(axis=1, dtype=np.float64))).tolist()
    return found


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error."""
    mean = statistics.fmean(values)
    return mean, (statistics.stdev(values, mean) if len(values) > 1 else 0.0) / math.sqrt(len(values))


def in_words(values: Sequence[float]) -> dict[str, float]:
    """The mean with its standard error, for a report."""
    mean, error = mean_and_error(values)
    return {"items": len(values), "mean": mean, "error": error}


def compared(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Means of the same items before and after, each with its standard error, and of the gain item by item."""
    gain, error = mean_and_error([late - early for early, late in zip(before, after, strict=True)])
    found: dict[str, Any] = {"items": len(before)}
    for name, values in (("before", before), ("after", after)):
        found[name], found[f"{name}_error"] = mean_and_error(values)
    return {**found, "gain": gain, "gain_error": error, "gain_in_errors": gain / error if error else None}


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")
    return path


def log_of(run: Path, *names: str) -> dict[str, list[list[float]]]:
    """Figures of a run's log by name, as [step, value]."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {name: [[line["step"], float(f"{line[name]:.4g}")] for line in lines if name in line] for name in names}


class Spent:
    """What a run takes from now on, beside what parts of it took that were stopped before their end: seconds by the clock, and processor
    seconds of this process and of those that it waited for.

    Both are written to `RUN-spent.json` every few seconds, so that a part that is killed counts too. What could not be written is said
    once and tried again: only a part that is killed meanwhile is then missing. A folder that is not there begins with nothing.
    """

    def __init__(self, run: Path) -> None:
        self._file = run.with_name(f"{run.name}-spent.json")
        self._before = json.loads(self._file.read_text(encoding="utf-8")) if run.is_dir() and self._file.is_file() else {}
        self._began, self._used = time.monotonic(), _used_s()
        run.parent.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._keep, name="spent", daemon=True).start()

    def seconds(self) -> dict[str, float]:
        """By the clock, and of processors."""
        here = {"clock": time.monotonic() - self._began, "processors": _used_s() - self._used}
        return {name: self._before.get(name, 0.0) + value for name, value in here.items()}

    def _keep(self) -> None:
        is_told = False
        while True:
            time.sleep(KEPT_S)
            try:
                with atomic_write(self._file) as file:
                    file.write(json.dumps(self.seconds()).encode())
            except HerdError as problem:
                if not is_told:
                    print(f"{self._file}: what the run takes could not be noted: {problem}", file=sys.stderr, flush=True)
                is_told = True


def report(run: Path, spent: Spent, found: dict[str, Any], curves: Path | None = None) -> None:
    """Writes what was found to RUN/report.json and prints it. `curves` (default: the run's own) becomes RUN/report.svg."""
    seconds = spent.seconds()
    whole = {
        "command": shlex.join(["python", *sys.argv]),
        "minutes": round(seconds["clock"] / 60, 1),
        "processor_minutes": round(seconds["processors"] / 60, 1),
        "commit": commit(),
        "machine": machine(),
        **rounded(found),
    }
    (run / "report.json").write_text(as_text(whole), encoding="utf-8")
    curves = curves or run / "curves.svg"
    if curves.is_file():
        shutil.copyfile(curves, run / "report.svg")
    print(as_text({name: value for name, value in whole.items() if not name.endswith(CURVES)}), end="")


def _used_s() -> float:
    """Processor seconds of this process and of those that it waited for, so far."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def rounded(found: Any) -> Any:
    """Numbers to six places."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [rounded(value) for value in found]
    return float(f"{found:.6g}") if isinstance(found, float) else found


def as_text(found: dict[str, Any]) -> str:
    """JSON with one name on each line."""
    lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"
