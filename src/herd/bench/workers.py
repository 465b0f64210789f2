"""An engine in a process of its own, that loads once and answers timing requests: JSON, one a line.

    python -m herd.bench.workers ENGINE SETTINGS            requests from standard input, until it ends
    python -m herd.bench.workers ENGINE SETTINGS first IDS  one prompt, "token" as soon as its first token is there, and the end

Whatever an engine and its libraries print goes to standard error, so that answers stay answers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from herd.bench.engines import ENGINES, Engine, Herd, Settings
from herd.errors import ProviderError

if TYPE_CHECKING:
    import subprocess

START_TIMEOUT_S = 600.0


class Worker:
    """A process that holds one engine. `ProviderError` says why it cannot be, or why it ended."""

    def __init__(self, engine: str, settings: Settings) -> None:
        import subprocess

        self.engine = engine
        self._process: subprocess.Popen[str] = subprocess.Popen(
            _command(engine, settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            hello = self._read()
        except ProviderError:
            self.close()
            raise
        self.version, self.abilities = str(hello["version"]), frozenset(hello["abilities"])

    def answer(self, tokens: Sequence[int], count: int) -> tuple[float, float]:
        """As `Engine.answer`."""
        first, rest = self._ask(do="answer", tokens=list(tokens), count=count)["seconds"]
        return first, rest

    def step(self, context: int, tokens: Sequence[int]) -> float:
        """As `Engine.step`."""
        return float(self._ask(do="step", context=context, tokens=list(tokens))["seconds"])

    def parts(self, context: int, tokens: Sequence[int]) -> dict[str, float]:
        """As `Herd.parts`, of an engine that has the ability."""
        found: dict[str, float] = self._ask(do="parts", context=context, tokens=list(tokens))["seconds"]
        return found

    def together(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        """As `Engine.together`."""
        return float(self._ask(do="together", prompts=[list(prompt) for prompt in prompts], count=count)["seconds"])

    def peak_bytes(self) -> int | None:
        """The largest resident size so far; None where the system does not tell."""
        found: int | None = self._ask(do="memory")["bytes"]
        return found

    def close(self) -> None:
        import subprocess

        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ProviderError(f"The process of {self.engine} ended with exit code {self._process.wait()}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ProviderError(f"{self.engine}: {answer['error']}")
        return answer


def first_token_s(engine: str, settings: Settings, tokens: Sequence[int]) -> float:
    """Seconds from the start of a process to the first token of a prompt, with the file in the system's cache."""
    import subprocess

    before = time.perf_counter()
    command = [*_command(engine, settings), "first", json.dumps(list(tokens))]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - before
        _, errors = process.communicate(timeout=START_TIMEOUT_S)
    if line.strip() != "token":
        raise ProviderError(f"{engine} in a process of its own printed no token: {errors.strip()[-500:]}")
    return seconds


def _command(engine: str, settings: Settings) -> list[str]:
    from dataclasses import asdict

    return [sys.executable, "-m", "herd.bench.workers", engine, json.dumps(asdict(settings))]


def peak_bytes() -> int | None:
    """The largest resident size of this process so far. Linux counts in KiB, macOS in bytes."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def answered(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """What a request asks for."""
    match request["do"]:
        case "answer":
            return {"seconds": engine.answer(request["tokens"], request["count"])}
        case "step":
            return {"seconds": engine.step(request["context"], request["tokens"])}
        case "parts" if isinstance(engine, Herd):
            return {"seconds": engine.parts(request["context"], request["tokens"])}
        case "together":
            return {"seconds": engine.together(request["prompts"], request["count"])}
        case "memory":
            return {"bytes": peak_bytes()}
    raise ValueError(f"unknown request {request['do']!r}")


def _own_output() -> TextIO:
    """Standard output for our answers alone: what else is printed there, also by native code, goes to standard error."""
    own = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return own


def main() -> None:
    """One engine, until standard input ends."""
    name, settings, out = sys.argv[1], Settings(**json.loads(sys.argv[2])), _own_output()
    try:
        engine: Engine = ENGINES[name](settings)
        if len(sys.argv) > 3:
            engine.answer(json.loads(sys.argv[4]), 1)
            print("token", file=out)
            return
        print(json.dumps({"version": engine.version, "abilities": sorted(engine.abilities)}), file=out)
        for line in sys.stdin:
            print(json.dumps(answered(engine, json.loads(line))), file=out)
    except Exception as problem:  # whatever a peer raises is what the other process is told
        print(json.dumps({"error": (str(problem).strip() or type(problem).__name__)[:300]}), file=out)
        raise SystemExit(1) from problem


if __name__ == "__main__":
    main()
