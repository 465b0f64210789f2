"""The two engines of a comparison, each in a process of its own that loads once and answers timing requests.

    python benchmarks/workers.py herd|llama.cpp MODEL THREADS

Requests and answers are JSON, one a line. `prompt` processes token ids with an empty cache up to the choice of the next
token; `decode` continues a prompt greedily, one token after another; both answer with seconds, `decode` without the
prompt's share. `memory` answers with the largest resident size so far, in bytes.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
import time
from typing import Any, Protocol

CONTEXT = 1024


class Engine(Protocol):
    version: str

    def prompt(self, tokens: list[int]) -> float:
        """Seconds from token ids to the next token, with nothing of them in the cache."""
        ...

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds for the tokens after the first one, and all of them. Fewer than `count` when the model ends."""
        ...


class Herd:
    """herd through its Python face, as a user calls it."""

    def __init__(self, path: str, threads: int) -> None:
        import herd

        self._model = herd.load(path, threads=threads)
        self.version = str(self._model.fingerprint)

    def prompt(self, tokens: list[int]) -> float:
        before = time.perf_counter()
        self._model.generate(tokens, max_tokens=1, temperature=0.0)
        return time.perf_counter() - before

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        first = self.prompt(tokens)  # short enough to leave no whole page behind that the next line could find
        before = time.perf_counter()
        out = self._model.generate(tokens, max_tokens=count, temperature=0.0)
        return time.perf_counter() - before - first, list(out.token_ids)


class LlamaCpp:
    """llama.cpp through its own C interface, two calls a token: nothing of the Python wrapper is measured."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self._c: Any = llama_cpp
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self._model: Any = llama_cpp.Llama(
            model_path=path, n_ctx=CONTEXT, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self._context = self._model.ctx
        self._greedy = llama_cpp.llama_sampler_init_greedy()

    def prompt(self, tokens: list[int]) -> float:
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        before = time.perf_counter()
        self._step(tokens)
        return time.perf_counter() - before

    def decode(self, tokens: list[int], count: int) -> tuple[float, list[int]]:
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        chosen = [self._step(tokens)]
        before = time.perf_counter()
        while len(chosen) < count:
            chosen.append(self._step(chosen[-1:]))
        return time.perf_counter() - before, chosen

    def _step(self, tokens: list[int]) -> int:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self._c.llama_decode(self._context, self._c.llama_batch_get_one(ids, len(tokens)))
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        return int(self._c.llama_sampler_sample(self._greedy, self._context, -1))


ENGINES = {"herd": Herd, "llama.cpp": LlamaCpp}


def peak_bytes() -> int:
    """Largest resident size of this process. Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    match request["do"]:
        case "prompt":
            return {"seconds": engine.prompt(request["tokens"])}
        case "decode":
            seconds, tokens = engine.decode(request["tokens"], request["count"])
            return {"seconds": seconds, "tokens": tokens}
        case "memory":
            return {"bytes": peak_bytes()}
    raise ValueError(f"unknown request {request['do']!r}")


def first_token(name: str, path: str, threads: int, tokens: list[int]) -> None:
    """A whole process for one token: what `time to first token` starts. Prints the token."""
    engine = ENGINES[name](path, threads)
    engine.prompt(tokens)
    print("token", flush=True)


def main() -> None:
    name, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if len(sys.argv) > 4:
        first_token(name, path, threads, json.loads(sys.argv[4]))
        return
    before = time.perf_counter()
    engine = ENGINES[name](path, threads)
    print(json.dumps({"version": engine.version, "load_s": time.perf_counter() - before}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
