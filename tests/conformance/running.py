"""Runs a backend the ways an engine would, and measures how far numbers are apart."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.backends.base import PAGE_TOKENS, Backend, BackendOptions, Plan, Span
from herd.backends.reference import ReferenceBackend
from herd.backends.reference.arrays import rounded
from herd.dtypes import BF16
from herd.models.architecture import Config
from herd.models.weights import Matrix

BACKENDS = ["reference", "cpu", "torch"]
NUM_PAGES = 32
ROOM = {"max_step_tokens": 1024, "max_step_outputs": 1024}


def cpu_is_built() -> bool:
    """Whether the extension module is there; a checkout that was never built has none."""
    try:
        import herd._core  # noqa: F401
    except ImportError:
        return False
    return True


def torch_is_installed() -> bool:
    """Whether the extra herd-llama[torch] is there."""
    return importlib.util.find_spec("torch") is not None


def make_backend(name: str, cfg: Config, leaves: Mapping[str, Matrix], **options: Any) -> Backend:
    """A backend with `NUM_PAGES` pages of cache, whose steps take all logits of any text here."""
    backend: Backend
    options = ROOM | options
    if name == "reference":
        backend = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(**options))
    elif name == "torch":
        from herd.backends.torch import TorchBackend

        backend = TorchBackend(cfg, leaves.__getitem__, BackendOptions(**{"threads": 1} | options))
    else:
        from herd.backends.cpu import CpuBackend

        backend = CpuBackend(cfg, leaves.__getitem__, BackendOptions(**options), lambda: None)
    backend.allocate(NUM_PAGES)
    return backend


def plain_of(name: str, cfg: Config, leaves: Mapping[str, Matrix], **options: Any) -> ReferenceBackend:
    """The plain implementation of what backend `name` computes: numpy in float32. Where the cpu backend has a dot product of bf16, what
    is multiplied with BF16 weights is rounded to it first, and nothing else."""
    backend = make_backend("reference", cfg, leaves, **options)
    assert isinstance(backend, ReferenceBackend)
    if name == "cpu" and multiplies_bf16():
        for ops in (backend._ops, backend._picture_ops):
            ops._product = partial(_product_of_bf16, ops._product)  # type: ignore[method-assign]  # stands in for it
    return backend


def _product_of_bf16(product: Callable[..., Any], x: NDArray[Any], w: Any) -> Any:
    return product(rounded(x, BF16) if w.dtype is BF16 else x, w)


def multiplies_bf16() -> bool:
    """Whether the cpu backend's instruction set has a dot product of bf16."""
    from herd.backends.cpu.limits import multiplies_bf16

    return multiplies_bf16()


def oracle(cfg: Config, leaves: Mapping[str, Matrix], tokens: Sequence[int], activations: str = "float32") -> NDArray[np.float64]:
    """Logits [T, V] of the float64 reference."""
    backend = ReferenceBackend(cfg, leaves.__getitem__, BackendOptions(dtype="float64", activations=activations))
    backend.allocate(NUM_PAGES)
    return backend.logits(Plan((whole(tokens),))).astype(np.float64, copy=False)


def pages_for(num_tokens: int, first: int = 0) -> list[int]:
    """Enough pages, not in order: nothing may rely on neighbours."""
    count = math.ceil(num_tokens / PAGE_TOKENS)
    return [first + (count - 1 - index) for index in range(count)]


def whole(tokens: Sequence[int], first_page: int = 0) -> Span:
    """A prompt in one piece, all logits wanted."""
    return Span(0, list(tokens), pages_for(len(tokens), first_page), len(tokens))


def logits_of(backend: Backend, *spans: Span) -> NDArray[np.float32]:
    """One step's logits."""
    result = backend.step(Plan(spans, want_logits=True))
    assert result.logits_RV is not None
    return result.logits_RV


def in_chunks(backend: Backend, tokens: Sequence[int], chunk: int, first_page: int = 0) -> NDArray[np.float32]:
    """A prompt in pieces of `chunk` tokens, all logits."""
    pages = pages_for(len(tokens), first_page)
    pieces = []
    for start in range(0, len(tokens), chunk):
        piece = list(tokens[start : start + chunk])
        pieces.append(logits_of(backend, Span(start, piece, pages, len(piece))))
    return np.concatenate(pieces)


def prompt(cfg: Config, length: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    return [int(token) for token in np.random.default_rng([7, seed]).integers(0, cfg.vocab_size, length)]


def error(ours: NDArray[Any], exact: NDArray[Any]) -> float:
    """Root mean square of the difference."""
    return float(np.sqrt(np.mean((ours.astype(np.float64) - exact) ** 2)))
