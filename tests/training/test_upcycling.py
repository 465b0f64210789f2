"""A dense model that gets experts says at first what it said before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from herd.dtypes import F32, Q8_0, DType
from herd.errors import UsageError
from herd.models.weights import TensorSpec
from herd.training.beginning.upcycling import UpcyclingSettings, upcycled_config, upcycled_leaf
from herd.training.student.batches import Document, batch_of
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama, tiny_llama4


def stored(spec: TensorSpec) -> DType:
    return Q8_0 if spec.name.endswith("ffn.gate") else F32


@pytest.mark.parametrize("facts", [{}, {"tied_embeddings": True}, {"qkv_bias": True, "out_bias": True}])
@pytest.mark.parametrize("every", [1, 2])
def test_an_upcycled_model_gives_the_dense_models_logits_and_can_learn(facts: dict[str, Any], every: int) -> None:
    cfg = tiny_llama(**facts)
    leaf = random_leaves(cfg, dtype=stored).__getitem__
    settings = UpcyclingSettings(experts=3, every=every)
    made = Student(upcycled_config(cfg, settings), upcycled_leaf(cfg, leaf, settings))
    tokens = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    batch = batch_of([Document(tuple(tokens), (0.0, *[1.0] * 39))])
    assert torch.equal(made.logits(batch), Student(cfg, leaf).logits(batch))
    made.logprobs(batch).sum().backward()  # type: ignore[no-untyped-call]
    assert made.parameters["layers.1.experts.down"].grad.any()  # type: ignore[union-attr]


def test_experts_differ_in_the_rows_that_were_drawn_anew_the_same_in_gate_and_up() -> None:
    cfg = tiny_llama()
    leaf = random_leaves(cfg).__getitem__
    made = Student(upcycled_config(cfg, UpcyclingSettings()), upcycled_leaf(cfg, leaf, UpcyclingSettings()))
    dense = Student(cfg, leaf)
    changed = {}
    for part in ("gate", "up"):
        stack, value = made.parameters[f"layers.0.experts.{part}"], dense.parameters[f"layers.0.ffn.{part}"]
        changed[part] = (stack != value).any(dim=-1)
    assert torch.equal(changed["gate"], changed["up"])
    assert changed["gate"].float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert not torch.equal(changed["gate"][0], changed["gate"][1])


@pytest.mark.parametrize(
    ("cfg", "settings", "said"),
    [
        (tiny_llama4(), UpcyclingSettings(), "Only dense models"),
        (tiny_llama(ffn_bias=True), UpcyclingSettings(), "has biases"),
        (tiny_llama(), UpcyclingSettings(every=3), "none would get experts"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(cfg: Any, settings: UpcyclingSettings, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        upcycled_config(cfg, settings)
