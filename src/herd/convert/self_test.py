"""A small numerical test: the compiled backend against the definition in numpy, with the model's own weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import PAGE_TOKENS, Backend, BackendOptions, Plan, Span
from herd.checkpoints.checkpoint import Checkpoint
from herd.convert.findings import Finding, Outcome
from herd.dtypes import BF16, F16
from herd.engine.memory import available_bytes
from herd.errors import HerdError
from herd.models.architecture import Config, architecture_of
from herd.models.llama import LlamaConfig

PROMPT_TOKENS = 12
CLASSIFIER = "deberta-v2"
# float32 copies of weights that the reference makes; more would take minutes and memory that a user may not have.
MOST_BYTES = 3 << 30
# Root mean square of the difference over that of the logits. 16-bit weights are multiplied with rounded activations.
ALLOWED = {False: 1e-4, True: 3e-2}


def self_test(checkpoint: Checkpoint, token_ids: list[int] | None = None) -> Finding:
    """Logits of a short prompt on both backends; a model that is too large is tried with its first layers."""
    config, note = _affordable(checkpoint)
    if config is None:
        return Finding("self-test", Outcome.SKIPPED, note)
    try:
        from herd.backends.cpu import CpuBackend
        from herd.backends.reference import ReferenceBackend
    except ImportError as problem:
        return Finding("self-test", Outcome.SKIPPED, f"the compiled backend is not here ({problem})")
    tokens = [index % config.vocab_size for index in token_ids or range(3, 3 + PROMPT_TOKENS)]
    options = BackendOptions(activations="float32", max_step_tokens=64, max_step_outputs=64)
    try:
        expected = _logits(ReferenceBackend(config, checkpoint.leaf, options), tokens)
        found = _logits(CpuBackend(config, checkpoint.leaf, options, checkpoint.release_pages), tokens)
    except HerdError as problem:
        return Finding("self-test", Outcome.PROBLEM, str(problem))
    return _compared(expected, found, checkpoint, note)


def _compared(expected: NDArray[np.float32], found: NDArray[np.float32], checkpoint: Checkpoint, note: str) -> Finding:
    if not np.all(np.isfinite(expected)):
        return Finding("self-test", Outcome.PROBLEM, "the logits of a short prompt are not finite numbers" + note)
    spread = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    apart = float(np.sqrt(np.mean(np.square(found - expected, dtype=np.float64)))) / max(spread, 1e-30)
    same = int(np.sum(expected.argmax(axis=1) == found.argmax(axis=1)))
    is_half = any(checkpoint.dtype(spec.name) in (BF16, F16) for spec in checkpoint.specs)
    text = f"cpu and reference: logits {apart:.1e} apart (relative), {same} of {len(expected)} likeliest tokens the same{note}"
    return Finding("self-test", Outcome.GOOD if apart <= ALLOWED[is_half] else Outcome.PROBLEM, text)


def _logits(backend: Backend, tokens: list[int]) -> NDArray[np.float32]:
    try:
        backend.allocate(-(-len(tokens) // PAGE_TOKENS))
        span = Span(0, tokens, list(range(-(-len(tokens) // PAGE_TOKENS))), len(tokens))
        logits = backend.step(Plan((span,), want_logits=True)).logits_RV
        assert logits is not None
        return np.array(logits, np.float32)
    finally:
        backend.close()


def _affordable(checkpoint: Checkpoint) -> tuple[Any, str]:
    """A config whose float32 weights are not too much, and what was left out; None and why where there is none."""
    config = checkpoint.config
    if checkpoint.architecture == CLASSIFIER:
        return None, "a classifier predicts no next token"
    room = min(MOST_BYTES, (available_bytes() or MOST_BYTES) // 3)
    whole = _float32_bytes(config)
    if whole <= room:
        return config, ""
    if not isinstance(config, LlamaConfig):
        return None, f"it would take {whole:,} bytes of numbers; {room:,} are used at most"
    ends = _float32_bytes(replace(config, num_layers=0))
    each = (whole - ends) // config.num_layers
    layers = (room - ends) // max(1, each)
    if layers < 1:
        return None, f"even one layer would take {ends + each:,} bytes of numbers; {room:,} are used at most"
    return replace(
        config, num_layers=layers
    ), f"; with the first {layers} of {config.num_layers} layers, as the whole would take {whole:,} bytes"


def _float32_bytes(config: Config) -> int:
    return 4 * sum(spec.count for spec in architecture_of(config).tensors(config))
