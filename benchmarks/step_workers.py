"""The two engines of benchmarks/kernels.py, each in a process of its own: they time single steps of a given make.

    python benchmarks/step_workers.py herd|llama.cpp MODEL THREADS STEP_TOKENS

A request is one line of JSON, {"sequences": S, "tokens": T, "depth": D, "all_logits": bool, "times": N}: a step of T tokens of each of
S sequences that have D tokens in the cache already. The answer is the seconds of each of N such steps, up to logits in memory. herd takes
up to STEP_TOKENS of a sequence in one step; llama.cpp cuts steps into pieces of 512, as it does by itself. With "attention": true herd says
besides how many seconds of one more such step attention took.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

PAGE_TOKENS = 64
LEAST_CONTEXT = 1024
PIECE_TOKENS = 512


def context_of(sequences: int, step_tokens: int) -> int:
    """Tokens of each sequence that there is room for: where there is one, a step and as much before it; several have short steps."""
    return max(LEAST_CONTEXT, 2 * step_tokens) if sequences == 1 else LEAST_CONTEXT


def token(at: int) -> int:
    """Token ids that every vocabulary has."""
    return (at * 7919 + 13) % 500


class Herd:
    """herd's backend, as its engine calls it: one step is one call."""

    def __init__(self, path: str, threads: int, step_tokens: int) -> None:
        from herd.backends.base import BackendOptions, Plan, Span
        from herd.backends.cpu import CpuBackend
        from herd.checkpoints.open import open_checkpoint

        self._plan, self._span = Plan, Span
        checkpoint = open_checkpoint(Path(path))
        options = BackendOptions(threads=threads, max_step_tokens=step_tokens, max_step_outputs=64)
        self._backend = CpuBackend(checkpoint.config, checkpoint.leaf, options, checkpoint.release_pages)
        self.version = self._backend.fingerprint
        self._step_tokens = step_tokens
        self._pages_each = context_of(1, step_tokens) // PAGE_TOKENS
        self._backend.allocate(self._pages_each)
        self._sequences = 1

    def ready(self, sequences: int, depth: int) -> None:
        if sequences != self._sequences:
            self._pages_each = context_of(sequences, self._step_tokens) // PAGE_TOKENS
            self._backend.allocate(self._pages_each * sequences)
            self._sequences = sequences
        for sequence in range(sequences):
            for start in range(0, depth, self._step_tokens):
                self._step([self._part(sequence, start, min(self._step_tokens, depth - start), 0)])

    def step(self, sequences: int, tokens: int, depth: int, all_logits: bool) -> None:
        self._step([self._part(sequence, depth, tokens, tokens if all_logits else 1) for sequence in range(sequences)])

    def attention_s(self, sequences: int, tokens: int, depth: int, all_logits: bool) -> float:
        """Seconds of one step in which the first thread was at attention, waiting for the others included."""
        self._backend.profile(True)
        self.step(sequences, tokens, depth, all_logits)
        return sum(seconds for label, seconds in self._backend.profile(False) if label == "attention")

    def _part(self, sequence: int, start: int, tokens: int, outputs: int) -> Any:
        pages = list(range(sequence * self._pages_each, (sequence + 1) * self._pages_each))
        return self._span(start, [token(start + at + sequence) for at in range(tokens)], pages, outputs)

    def _step(self, spans: list[Any]) -> None:
        self._backend.step(self._plan(tuple(spans)))


class LlamaCpp:
    """llama.cpp through its own C interface."""

    def __init__(self, path: str, threads: int, step_tokens: int) -> None:
        import llama_cpp

        self._c: Any = llama_cpp
        self._threads, self._step_tokens = threads, step_tokens
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self._no_log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._no_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self._context: Any = None
        self._sequences = 0

    def ready(self, sequences: int, depth: int) -> None:
        if sequences != self._sequences:
            if self._context:
                self._c.llama_free(self._context)
            params = self._c.llama_context_default_params()
            params.n_ctx, params.n_seq_max = context_of(sequences, self._step_tokens) * sequences, sequences
            params.n_batch, params.n_ubatch = self._step_tokens, PIECE_TOKENS
            params.n_threads = params.n_threads_batch = self._threads
            self._context = self._c.llama_init_from_model(self._model, params)
            self._sequences = sequences
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        for sequence in range(sequences):
            for start in range(0, depth, self._step_tokens):
                self._decode([(sequence, start, min(self._step_tokens, depth - start))], False)

    def step(self, sequences: int, tokens: int, depth: int, all_logits: bool) -> None:
        memory = self._c.llama_get_memory(self._context)
        for sequence in range(sequences):
            self._c.llama_memory_seq_rm(memory, sequence, depth, -1)
        self._decode([(sequence, depth, tokens) for sequence in range(sequences)], all_logits)

    def _decode(self, parts: list[tuple[int, int, int]], all_logits: bool) -> None:
        count = sum(tokens for _, _, tokens in parts)
        batch = self._c.llama_batch_init(count, 0, 1)
        batch.n_tokens, row = count, 0
        for sequence, start, tokens in parts:
            for at in range(tokens):
                batch.token[row], batch.pos[row] = token(start + at + sequence), start + at
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
                batch.logits[row] = int(all_logits or at == tokens - 1)
                row += 1
        status = self._c.llama_decode(self._context, batch)
        self._c.llama_get_logits(self._context)  # waits until they are there
        self._c.llama_batch_free(batch)
        if status != 0:
            raise SystemExit(f"llama_decode returned {status}")


ENGINES = {"herd": Herd, "llama.cpp": LlamaCpp}


def main() -> None:
    name, path, threads, step_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    engine = ENGINES[name](path, threads, step_tokens)
    print(json.dumps({"version": engine.version}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        step = {key: request[key] for key in ("sequences", "tokens", "depth", "all_logits")}
        engine.ready(request["sequences"], request["depth"])
        seconds = []
        for _ in range(request["times"]):
            before = time.perf_counter()
            engine.step(**step)
            seconds.append(time.perf_counter() - before)
        answer: dict[str, Any] = {"seconds": seconds}
        if request["attention"] and isinstance(engine, Herd):
            answer["attention_s"] = engine.attention_s(**step)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
