"""Matrices of one input as one product: the same values and gradients as one by one."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch
from torch import Tensor

from herd import dtypes
from herd.models.architecture import Config
from herd.training.settings.lora import Lora
from herd.training.student.batches import Batch, Document, batch_of
from herd.training.student.checkpointing import recomputed
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama, tiny_llama4

PLAIN = tiny_llama(qkv_bias=True, num_layers=1)
MIXED = tiny_llama4(num_layers=2, expert_layers=(1,), rotary_layers=(0,), chunked_layers=(0,))


def student(cfg: Config, keep_bytes: int, dtype: torch.dtype = torch.float64, stored: dtypes.DType = dtypes.F32) -> Student:
    made = Student(cfg, random_leaves(cfg, dtype=stored).__getitem__, dtype=dtype, lora=Lora(rank=4), keep_bytes=keep_bytes)
    for name, parameter in made.parameters.items():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    return made


def batch() -> Batch:
    random = torch.Generator().manual_seed(0)
    documents = [torch.randint(300, (length,), generator=random).tolist() for length in (20, 7)]
    return batch_of([Document(tuple(tokens), (0.0, *[1.0] * (len(tokens) - 1))) for tokens in documents])


def found(learner: Student) -> list[Tensor]:
    """Log-probabilities and the gradients of their sum."""
    logprobs = learner.logprobs(batch())
    return [logprobs.detach(), *torch.autograd.grad(logprobs.sum(), list(learner.parameters.values()))]


@pytest.mark.parametrize("cfg", [PLAIN, MIXED], ids=["llama", "llama 4"])
@pytest.mark.parametrize("stored", [dtypes.F32, dtypes.Q8_0], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_values_and_gradients_are_those_of_one_matrix_after_another(cfg: Config, stored: dtypes.DType, is_recomputed: bool) -> None:
    together, apart = student(cfg, 1 << 40, stored=stored), student(cfg, 0, stored=stored)
    assert together.ops.joined and not apart.ops.joined
    if is_recomputed:
        together.run = recomputed
    for ours, theirs in zip(found(together), found(apart), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)
    with together.without_adapters(), apart.without_adapters(), torch.no_grad():
        assert torch.allclose(together.logprobs(batch()), apart.logprobs(batch()), atol=1e-10)


def test_updates_are_those_of_the_moment() -> None:
    together, apart = student(PLAIN, 1 << 40), student(PLAIN, 0)
    for learner in (together, apart):
        found(learner)
        with torch.no_grad():
            for parameter in learner.parameters.values():
                parameter.mul_(1.5)
    for ours, theirs in zip(found(together), found(apart), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


def test_in_16_bits_values_are_as_near_to_the_truth_as_apart() -> None:
    truth = found(student(PLAIN, 0))
    together, apart = (found(student(PLAIN, keep_bytes, torch.bfloat16)) for keep_bytes in (1 << 40, 0))
    for ours, theirs, exact in zip(together, apart, truth, strict=True):
        assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


def test_matrices_are_joined_as_far_as_the_bytes_reach() -> None:
    learner = student(PLAIN, 384 * (256 + 3 * 4) * 8)
    assert len(learner.ops.joined) == 3, "queries, keys and values; gate and up no more"
    assert learner.tensors.decoded_bytes == 0, "plain values are in the place of the stored ones"
