"""herd and its peers behind one protocol: token ids in, seconds out. Each runs in a process of its own (`workers`).

All of them get the same file, the same ids and the same number of threads, and answer greedily without an end. What is timed is the
engine: no text is made of ids, and nothing is printed. Peers are used through the calls that their own tools are made of.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from herd.errors import ProviderError, UsageError
from herd.records import dataclass

PEERS = {"llama.cpp": "llama_cpp", "openvino": "openvino_genai"}
"""Other engines, by the module that they come in."""
_DISTRIBUTIONS = {"llama.cpp": "llama-cpp-python", "openvino": "openvino-genai"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine is loaded. `context`: the longest sequence it will be given; `sequences`: how many short ones (of 64 tokens at most)
    at once; `options`: what `herd.load` takes besides, for herd alone."""

    path: str
    threads: int
    context: int = 1024
    sequences: int = 1
    options: dict[str, Any] | None = None


class Engine(Protocol):
    """One loaded model. `version` names what was measured. What it cannot do is not in `abilities`."""

    version: str
    abilities: frozenset[str]

    def answer(self, tokens: Sequence[int], count: int) -> tuple[float, float]:
        """Seconds from a prompt of which nothing is cached to the first token, and for the `count - 1` tokens after it."""
        ...

    def step(self, context: int, tokens: Sequence[int]) -> float:
        """Seconds of one step that adds `tokens` to a sequence of `context` tokens, with the logits of each."""
        ...

    def together(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        """Seconds in which every prompt, all of them processed before, is answered with `count` tokens."""
        ...


def installed_peers() -> tuple[str, ...]:
    """Which other engines this Python has."""
    import importlib.util

    return tuple(name for name, module in PEERS.items() if importlib.util.find_spec(module) is not None)


class Herd:
    """herd through its engine: what `herd.load` gives, less the text."""

    def __init__(self, settings: Settings) -> None:
        from herd.api import load
        from herd.backends.base import PAGE_TOKENS

        options: dict[str, Any] = {"parallel": -(-settings.sequences * PAGE_TOKENS // settings.context), **(settings.options or {})}
        is_cpu = options.get("backend", "cpu") == "cpu"
        self.abilities = frozenset({"answer", "step", "together", *(("parts",) if is_cpu else ())})
        self._model = load(settings.path, **(({"threads": settings.threads} if is_cpu else {}) | options))
        self._engine = self._model.engine
        self.version = self._model.fingerprint

    def _request(self, tokens: Sequence[int], count: int) -> Any:
        from herd.engine.request import Request
        from herd.sampling.params import SamplingParams

        return Request(tokens=list(tokens), sampling=SamplingParams(temperature=0.0), max_tokens=count, stop_ids=())

    def answer(self, tokens: Sequence[int], count: int) -> tuple[float, float]:
        before = time.perf_counter()
        progress = self._engine.run(self._request(tokens, count))
        _checked(next(progress))
        first = time.perf_counter()
        for each in progress:
            _checked(each)
        return first - before, time.perf_counter() - first

    def step(self, context: int, tokens: Sequence[int]) -> float:
        from herd.backends.base import NO_PAGE, Plan, Span

        # Nobody else uses the pages: what lies in them takes as long to read as anything else.
        groups, unused = self._engine.backend.groups, itertools.count()
        blocks = range(groups.blocks_for(context + len(tokens)))
        firsts = [groups.first_block(group, context) for group in range(groups.count)]
        pages = [next(unused) if block >= first else NO_PAGE for block in blocks for first in firsts]
        plan = Plan((Span(context, tuple(tokens), tuple(pages), len(tokens)),))
        before = time.perf_counter()
        self._engine.backend.step(plan)
        return time.perf_counter() - before

    def parts(self, context: int, tokens: Sequence[int]) -> dict[str, float]:
        """Seconds of each kind of instruction in one such step, as the first thread sees them: waiting for the others is part of each.
        What is left of the step, waking threads and the way into the native code, is "outside"."""
        backend: Any = self._engine.backend  # the cpu one: no other has the ability
        backend.profile(True)
        whole = self.step(context, tokens)
        found: dict[str, float] = {}
        for label, seconds in backend.profile(False):
            found[label] = found.get(label, 0.0) + seconds
        return found | {"outside": whole - sum(found.values())}

    def together(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        running = [self._engine.submit(self._request(prompt, count + 1)) for prompt in prompts]
        while any(not sequence.answer for sequence in running):
            self._step_all()
        if self._engine.load.running < len(prompts):
            raise ProviderError(f"The cache has no room for {len(prompts)} sequences of {len(prompts[0]) + count} tokens at once.")
        made = sum(len(sequence.answer) for sequence in running)
        before = time.perf_counter()
        while any(sequence.stop_reason is None for sequence in running):
            self._step_all()
        seconds = time.perf_counter() - before
        left = sum(len(sequence.answer) for sequence in running) - made
        return seconds * count * len(prompts) / left

    def _step_all(self) -> None:
        for each in self._engine.step():
            _checked(each)


def _checked(progress: Any) -> None:
    if progress.error is not None:
        raise progress.error


class LlamaCpp:
    """llama.cpp through its own C interface: nothing of its Python wrapper is timed."""

    abilities = frozenset({"answer", "step", "together"})

    def __init__(self, settings: Settings) -> None:
        import ctypes

        llama_cpp: Any = importlib.import_module("llama_cpp")
        self._c = llama_cpp
        self.version = _version("llama.cpp")
        self._settings = settings
        # What llama.cpp would print goes nowhere; it keeps the function's address, so we keep the function.
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(settings.path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError("llama.cpp cannot open this file")
        self._context: Any = None
        self._size = (0, 0)
        self._filled = 0
        self._greedy = llama_cpp.llama_sampler_init_greedy()

    def _prepare(self, tokens: int, sequences: int) -> None:
        """A context of this size, empty."""
        if self._size != (tokens, sequences):
            if self._context:
                self._c.llama_free(self._context)
            params = self._c.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = tokens, 512, 512, sequences
            params.n_threads = params.n_threads_batch = self._settings.threads
            self._context = self._c.llama_init_from_model(self._model, params)
            if not self._context:
                raise RuntimeError(f"llama.cpp makes no context of {tokens} tokens")
            self._size = (tokens, sequences)
        self._c.llama_memory_clear(self._memory(), True)
        self._filled = 0

    def _memory(self) -> Any:
        return self._c.llama_get_memory(self._context)

    def answer(self, tokens: Sequence[int], count: int) -> tuple[float, float]:
        self._prepare(self._settings.context, 1)
        before = time.perf_counter()
        for start in range(0, len(tokens), 512):
            piece = tokens[start : start + 512]
            self._decode([(token, start + at, 0) for at, token in enumerate(piece)], only_last=True)
        chosen = self._choose(-1)
        first = time.perf_counter()
        for position in range(len(tokens), len(tokens) + count - 1):
            self._decode([(chosen, position, 0)])
            chosen = self._choose(-1)
        return first - before, time.perf_counter() - first

    def step(self, context: int, tokens: Sequence[int]) -> float:
        if self._filled != context:
            self._prepare(self._settings.context, 1)
            self._decode([(token, at, 0) for at, token in enumerate((list(tokens) * context)[:context])], only_last=True)
            self._choose(-1)
            self._filled = context
        self._c.llama_memory_seq_rm(self._memory(), 0, context, -1)
        before = time.perf_counter()
        self._decode([(token, context + at, 0) for at, token in enumerate(tokens)])
        self._c.llama_get_logits(self._context)
        return time.perf_counter() - before

    def together(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        self._prepare(len(prompts) * 256, len(prompts))
        last = []
        for sequence, prompt in enumerate(prompts):
            self._decode([(token, at, sequence) for at, token in enumerate(prompt)], only_last=True)
            last.append(self._choose(-1))
        before = time.perf_counter()
        for step in range(count):
            self._decode([(token, len(prompts[sequence]) + step, sequence) for sequence, token in enumerate(last)])
            last = [self._choose(row) for row in range(len(prompts))]
        return time.perf_counter() - before

    def _decode(self, entries: list[tuple[int, int, int]], *, only_last: bool = False) -> None:
        """(token, position, sequence) of each; logits of all or of the last."""
        batch = self._c.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for row, (token, position, sequence) in enumerate(entries):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = not only_last or row == len(entries) - 1
        status = self._c.llama_decode(self._context, batch)
        self._c.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")

    def _choose(self, row: int) -> int:
        return int(self._c.llama_sampler_sample(self._greedy, self._context, row))


class OpenVino:
    """OpenVINO GenAI, which opens GGUF files, through its pipeline of text generation."""

    abilities = frozenset({"answer", "together"})

    def __init__(self, settings: Settings) -> None:
        self._ov: Any = importlib.import_module("openvino")
        self._genai: Any = importlib.import_module("openvino_genai")
        self._pipeline: Any = self._genai.LLMPipeline(settings.path, "CPU", INFERENCE_NUM_THREADS=settings.threads)
        self.version = _version("openvino")

    def answer(self, tokens: Sequence[int], count: int) -> tuple[float, float]:
        times: list[float] = []
        begin, end = self._generate([tokens], count, self._watching(times))
        return times[0] - begin, end - times[0] if count > 1 else 0.0

    def _watching(self, times: list[float]) -> Any:
        """What the pipeline calls with each token: it notes when. So the prompt is processed once for both figures."""
        base: Any = self._genai.StreamerBase
        go_on = self._genai.StreamingStatus.RUNNING

        class Watch(base):  # type: ignore[misc]  # of a module without types
            def write(self, token: Any) -> Any:
                times.append(time.perf_counter())
                return go_on

            def end(self) -> None:
                pass

        return Watch()

    def step(self, context: int, tokens: Sequence[int]) -> float:
        raise UsageError("OpenVINO GenAI has no call for one step of several tokens: it is measured by whole answers.")

    def together(self, prompts: Sequence[Sequence[int]], count: int) -> float:
        (before, first), (begin, end) = (self._generate(prompts, length) for length in (1, count + 1))
        return (end - begin) - (first - before)

    def _generate(self, prompts: Sequence[Sequence[int]], count: int, *streamer: Any) -> tuple[float, float]:
        """When it began and ended."""
        import numpy as np

        ids = np.asarray(prompts, np.int64)
        inputs = self._genai.TokenizedInputs(self._ov.Tensor(ids), self._ov.Tensor(np.ones_like(ids)))
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        before = time.perf_counter()
        self._pipeline.generate(inputs, config, *streamer)
        return before, time.perf_counter()


ENGINES: dict[str, Callable[[Settings], Engine]] = {"herd": Herd, "llama.cpp": LlamaCpp, "openvino": OpenVino}


def _version(peer: str) -> str:
    import importlib.metadata

    name = _DISTRIBUTIONS[peer]
    return f"{name} {importlib.metadata.version(name)}"
