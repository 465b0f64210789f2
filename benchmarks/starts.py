"""How soon is the first token there after a process starts? One JSON line per figure.

    python benchmarks/starts.py SMOLLM2.gguf --vocabulary tokenizer.model [--rounds 5] [--folder FOLDER]

Two models: SMOLLM2.gguf, and the shape of Llama 3.2 1B in Q4_0 with random weights and the vocabulary of Llama 3 (tokenizer.model as Meta
gives it), written to --folder or a temporary one. Two questions to each: four token ids, for which no vocabulary is needed, and a text.
Both files are in the system's cache, and packed weights are kept from an earlier start. What is timed is all that a person waits for, from
the start of the interpreter until an answer's first token is printed. Rounds alternate between the four.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record import commit, figure, machine, say, sha256

import herd
from herd.bench.shapes import shape_of, write_shape
from herd.convert.tokens import gguf_tokens
from herd.family.progress import silent
from herd.text.tokenizer import read_vocabulary

SHAPE, QUANT = "llama-3.2-1b", "q4_0"
PROMPTS = {"token ids": "[11, 12, 13, 14]", "text": "'The first words of an answer are'"}
LIMITS_S = {(SHAPE, "token ids"): 0.35, (SHAPE, "text"): 0.9, ("smollm2", "token ids"): 0.3, ("smollm2", "text"): 0.45}
ANSWER = """
import sys, herd
model = herd.load(sys.argv[1])
print(model.generate({prompt}, max_tokens=1, temperature=0.0).{what}, flush=True)
sys.stdin.read()
model.close()
"""
KEEP_S = 180.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2", type=Path)
    parser.add_argument("--vocabulary", type=Path, required=True, help="Llama 3's tokenizer.model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the model and packed weights are written; removed at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="herd-starts-", dir=options.folder) as name:
        folder = Path(name)
        models = {"smollm2": options.smollm2, SHAPE: write_model(folder / "model.gguf", options.vocabulary)}
        for which, path in models.items():
            say(f"{which}: packing")
            keep(path, folder / "home")
        seen = measure(models, folder / "home", options.rounds)
        facts = {"commit": commit(), "machine": machine(), "threads": machine()["cores"], "versions": {"herd": herd.__version__}}
        about = {
            which: {"model": which, "model_mb": path.stat().st_size // 10**6, "model_sha256": sha256(path)}
            for which, path in models.items()
        }
        for (which, prompt), seconds in seen.items():
            bound = {"value": LIMITS_S[which, prompt], "what": "the longest that it should take"}
            figure(f"{which}: first token from {prompt}", seconds, "s", {**facts, **about[which]}, engine="herd", bound=bound)


def write_model(path: Path, vocabulary: Path) -> Path:
    """The 1B shape with random weights and the words of Llama 3."""
    say(f"writing {path.name}")
    shape = shape_of(SHAPE, QUANT)
    words = read_vocabulary("tiktoken", vocabulary, {}, {})
    write_shape(path, shape, silent, gguf_tokens(words, shape.config.vocab_size, (), []))
    return path


def measure(models: Mapping[str, Path], home: Path, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of each round, after one that warms up."""
    seen: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}")
        for which, path in models.items():
            for prompt in PROMPTS:
                seconds, process = start(path, home, prompt)
                end(process)
                if number:
                    seen.setdefault((which, prompt), []).append(seconds)
    return seen


def start(path: Path, home: Path, prompt: str) -> tuple[float, subprocess.Popen[str]]:
    """Seconds until a process prints its first token, and the process, which then waits."""
    program = ANSWER.format(prompt=PROMPTS[prompt], what="text" if prompt == "text" else "token_ids")
    environment: dict[str, Any] = {**os.environ, "HERD_HOME": str(home)}
    before = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - before
    if not line:
        raise SystemExit(f"{path.name}: the process ended with exit code {process.wait()}")
    return seconds, process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=KEEP_S)


def keep(path: Path, home: Path) -> None:
    """One start whose process lives until its packed weights are kept."""
    before = set(home.rglob("*.kept"))
    _, process = start(path, home, "token ids")
    deadline = time.monotonic() + KEEP_S
    while set(home.rglob("*.kept")) == before:
        if time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"The packed weights of {path.name} were not kept within {KEEP_S:.0f} s.")
        time.sleep(0.2)
    end(process)


if __name__ == "__main__":
    main()
