"""Every tiny model, whatever its architecture, and what `transformers` says with the same weights.

Tests of all architectures run over `CASES`; another architecture is another line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance import architectures, llama4
from herd.models.architecture import Config
from herd.models.weights import Matrix

Logits = Callable[[Any, Mapping[str, Matrix], Sequence[int], str], NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Case:
    """A config, and `logits(cfg, leaves, tokens, dtype)` of the same model in `transformers`: [T, V] of a whole prompt."""

    cfg: Config
    logits: Logits


def _llama(cfg: Any, leaves: Mapping[str, Matrix], tokens: Sequence[int], dtype: str) -> NDArray[np.floating[Any]]:
    return architectures.transformers_logits(architectures.transformers_model(cfg, leaves, dtype), list(tokens))


CASES: dict[str, Case] = {
    **{name: Case(cfg, _llama) for name, cfg in architectures.ARCHITECTURES.items()},
    **{name: Case(cfg, llama4.same_logits) for name, cfg in llama4.LLAMA4.items()},
}
