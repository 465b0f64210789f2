"""Layers computed twice learn what layers computed once do."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch
from torch import Tensor

from herd.models.architecture import Config
from herd.models.weights import Matrix
from herd.training.student.batches import Batch, Document, batch_of
from herd.training.student.checkpointing import recomputed
from herd.training.student.heads import Head, head_of
from herd.training.student.lora import Lora
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama, tiny_llama4

CONFIGS = {
    "llama": tiny_llama(width=64, head_width=8, ffn_width=128, tied_embeddings=True),
    "llama 4": tiny_llama4(width=64, ffn_width=128, expert_width=64),
}


def batch() -> Batch:
    random = torch.Generator().manual_seed(0)
    documents = [torch.randint(300, (length,), generator=random).tolist() for length in (40, 7)]
    return batch_of([Document(tuple(tokens), (0.0, *[1.0] * (len(tokens) - 1))) for tokens in documents])


def student(cfg: Config, lora: Lora | None = None) -> Student:
    leaves: dict[str, Matrix] = random_leaves(cfg)
    made = Student(cfg, leaves.__getitem__, dtype=torch.float64, lora=lora)
    for name, parameter in made.parameters.items():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return made


def slopes(learner: Student, step: int = 1) -> dict[str, Tensor]:
    learner.begin(step)
    found = torch.autograd.grad(learner.nll(batch())[0], list(learner.parameters.values()), allow_unused=True)
    return {name: each for name, each in zip(learner.parameters, found, strict=True) if each is not None}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lora", [None, Lora(rank=4), Lora(rank=4, dropout=0.3)])
def test_a_layer_computed_twice_gives_the_same_gradients_bit_for_bit(name: str, lora: Lora | None) -> None:
    learner = student(CONFIGS[name], lora)
    once = slopes(learner)
    learner.run = recomputed
    twice = slopes(learner)
    assert once.keys() == twice.keys() and once
    assert all(torch.equal(once[each], twice[each]) for each in once)


def test_of_a_layer_computed_twice_only_what_goes_in_is_kept() -> None:
    """Bytes that autograd holds between the ways there and back."""
    learner = student(CONFIGS["llama"], Lora(rank=4))

    def kept() -> int:
        held: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            hidden = learner.hidden(batch())
        assert hidden.requires_grad
        return sum(held.values())

    without = kept()
    learner.run = recomputed
    assert kept() < without / 4


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_sum_over_a_batch_is_that_of_its_log_probabilities(name: str, z_loss: float) -> None:
    learner, packed = student(CONFIGS[name]), batch()
    total, extras = learner.nll(packed, z_loss)
    logits = learner.logits(packed)
    logprobs = learner.logprobs(packed)
    assert torch.allclose(logprobs, torch.log_softmax(logits, dim=-1).gather(1, packed.targets_R[:, None])[:, 0])
    assert torch.allclose(total, -logprobs.sum() + z_loss * logits.logsumexp(dim=-1).square().sum())
    assert torch.allclose(extras.logprobs_R, logprobs)


def test_a_head_is_known_by_what_the_model_asks_for() -> None:
    learner = student(CONFIGS["llama"])
    assert head_of(learner.model, learner.weights, learner.cfg) == Head(learner.weights.head, None)


def test_a_head_that_does_more_than_a_matrix_and_a_cap_is_left_to_the_model() -> None:
    class Odd:
        def logits(self, x: object, w: Matrix, cfg: object, step: object) -> object:
            ops = step.ops  # type: ignore[attr-defined]
            return ops.linear(ops.add(x, x), w)

    leaf = random_leaves(CONFIGS["llama"])["embed"]
    assert head_of(Odd(), leaf, CONFIGS["llama"]) is None  # type: ignore[arg-type]
