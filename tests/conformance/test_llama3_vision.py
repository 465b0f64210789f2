"""Llama 3.2 Vision on the reference backend equals Meta's modules, with every parameter random, gates and norms too."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[dev])")
pytest.importorskip("llama_models", reason="Meta's llama_models is not installed (pip install herd-llama[dev])")

from conformance.llama3_vision_texts import CFG, GRIDS, TEXTS, difference, picture, placed, span_of
from conformance.meta_llama3_vision import MetaModel
from conformance.running import NUM_PAGES
from herd.backends.base import BackendOptions, Plan
from herd.backends.reference import ReferenceBackend
from herd.models.llama3_vision import Llama3VisionConfig
from tiny import random_leaves


@lru_cache(maxsize=1)
def theirs() -> MetaModel:
    return MetaModel(CFG, random_leaves(CFG))


@lru_cache(maxsize=16)
def meta_logits(name: str) -> NDArray[np.float64]:
    tokens, pictures = TEXTS[name]
    return theirs().logits(tokens, placed(tokens, pictures))


def reference(cfg: Llama3VisionConfig = CFG, **options: Any) -> ReferenceBackend:
    backend = ReferenceBackend(cfg, random_leaves(cfg).__getitem__, BackendOptions(**{"dtype": "float64", **options}))
    backend.allocate(NUM_PAGES)
    return backend


@pytest.mark.parametrize("grid", GRIDS)
def test_keys_and_values_of_pictures_equal_metas(grid: tuple[int, int]) -> None:
    shown = picture(grid)
    for ours, exact in zip(reference().encode(shown), theirs().keys_and_values(shown), strict=True):
        assert difference(ours, exact) < 1e-11


@pytest.mark.parametrize("name", TEXTS)
def test_logits_equal_metas(name: str) -> None:
    assert difference(reference().logits(Plan((span_of(name),))), meta_logits(name)) < 1e-11
