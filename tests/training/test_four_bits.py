"""Learning for four bits: what is learned with is what will be stored, exactly, and it learns."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch

from conformance.running import logits_of, make_backend, whole
from herd.dtypes import Q4_0
from herd.errors import UsageError
from herd.models.weights import Blocks
from herd.quant import dequantize
from herd.training.settings.lora import Lora
from herd.training.student.batches import batch_of
from herd.training.student.four_bits import on_grid, rounded, rounded_tokens, stored
from herd.training.student.model import Student
from tiny import random_leaves, tiny_llama, tiny_llama4
from training.learning import documents_of, loss_of, randomise

SMALL = tiny_llama(num_layers=1, width=64, num_heads=2, num_kv_heads=1, ffn_width=96, vocab_size=300)
DOCUMENTS = documents_of((7, 20), seed=2, vocabulary=290)


def test_blocks_hold_exactly_what_was_learned_with() -> None:
    values = torch.randn((6, 96), generator=torch.Generator().manual_seed(0))
    values[0, :32] = 0.0
    blocks = stored(values, (6, 96))
    assert blocks.dtype is Q4_0
    found = torch.from_numpy(dequantize(Q4_0, blocks.data, (6, 96)))
    assert torch.equal(found, on_grid(values))
    assert float((found - values).abs().max()) <= float(values.abs().max()) / 7.5 * 0.51
    assert torch.equal(on_grid(on_grid(values)).abs() > 0, on_grid(values).abs() > 0)


def test_the_gradient_goes_through_the_rounding_unchanged() -> None:
    x = torch.randn((3, 64), generator=torch.Generator().manual_seed(1)).requires_grad_()
    for function in (rounded, rounded_tokens):
        (slope,) = torch.autograd.grad((function(x) * 2.0).sum(), [x])
        assert torch.equal(slope, torch.full_like(x, 2.0))
    tokens = rounded_tokens(x).detach()
    assert float((tokens - x.detach()).abs().max()) <= float(x.detach().abs().max()) / 127 * 0.51


@pytest.mark.parametrize("lora", [None, Lora(4)], ids=["all weights", "updates"])
def test_an_engine_with_the_stored_blocks_says_what_the_student_says(lora: Lora | None) -> None:
    """But for what tokens lose in 8 bits, which the engine's exact path does not round."""
    leaves = random_leaves(SMALL)
    student = Student(SMALL, leaves.__getitem__, lora=lora, four_bits=True)
    randomise(student)
    student.adapters.four_bits = True
    found = student.leaves()
    expected = {name: student.base(name) if lora is not None else found[name] for name in found}
    assert isinstance(expected["layers.0.ffn.up"], Blocks)
    others = {} if lora is None else {name: student.base(name) for name in leaves if isinstance(student.base(name), Blocks)}
    runner = make_backend("reference", SMALL, {**leaves, **others}, activations="float32")
    runner.update(found)
    tokens = list(DOCUMENTS[1].tokens)
    theirs = torch.from_numpy(logits_of(runner, whole(tokens))).log_softmax(dim=-1)
    batch = batch_of([DOCUMENTS[1]])
    ours = student.logits(batch).detach().log_softmax(dim=-1)
    plain = Student(SMALL, leaves.__getitem__).logits(batch).detach().log_softmax(dim=-1)
    near = float((ours - theirs[batch.rows_R]).abs().mean())
    assert near < 0.1 * float((plain - ours).abs().mean())


@pytest.mark.parametrize("lora", [None, Lora(8)], ids=["all weights", "updates"])
def test_it_learns(lora: Lora | None) -> None:
    leaves = random_leaves(SMALL)
    student = Student(SMALL, leaves.__getitem__, lora=lora, four_bits=True)
    optimiser = torch.optim.AdamW(student.parameters.values(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(40):
        loss = loss_of(student, batch_of(DOCUMENTS))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1.0


@pytest.mark.parametrize("lora", [None, Lora(4)], ids=["all weights", "updates"])
def test_experts_multiply_tokens_that_are_rounded_before_each_matrix(lora: Lora | None) -> None:
    """Unless an engine draws answers from them: then only their weights are."""
    cfg = tiny_llama4(num_layers=2, expert_layers=(1,), rotary_layers=(0, 1), chunked_layers=())
    random = torch.Generator().manual_seed(6)
    x_TD, scores_TE = (torch.randn((9, count), generator=random, dtype=torch.float64) for count in (cfg.width, cfg.num_experts))
    found = {}
    for is_exact in (False, True):
        student = Student(cfg, random_leaves(cfg).__getitem__, dtype=torch.float64, lora=lora, four_bits=True, exact_tokens=is_exact)
        w = student.weights.layers[1].ffn.experts
        with torch.no_grad():
            found[is_exact] = student.ops.experts(x_TD, scores_TE, w, 2)
            gate, up, down = (student.tensors.get(leaf) for leaf in (w.gate, w.up, w.down))
        as_multiplied = (lambda x: x) if is_exact else rounded_tokens
        expected_TD = torch.zeros_like(x_TD)
        for token, scores_E in enumerate(scores_TE):
            for expert in scores_E.topk(2).indices.tolist():
                x = as_multiplied(x_TD[token] * scores_E[expert].sigmoid())
                inner = torch.nn.functional.silu(gate[expert] @ x) * (up[expert] @ x)
                expected_TD[token] += down[expert] @ as_multiplied(inner)
        torch.testing.assert_close(found[is_exact], expected_TD, rtol=1e-6, atol=1e-8)
    assert float((found[False] - found[True]).abs().max()) > 1e-3


def test_experts_are_rounded_too_and_strange_rows_are_refused() -> None:
    cfg = tiny_llama4(num_layers=2, expert_layers=(1,), rotary_layers=(0, 1), chunked_layers=())
    student = Student(cfg, random_leaves(cfg).__getitem__, four_bits=True)
    assert isinstance(student.leaves()["layers.1.experts.up"], Blocks)
    loss_of(student, batch_of(DOCUMENTS)).backward()
    assert float(student.parameters["layers.1.experts.up"].grad.abs().max()) > 0  # type: ignore[union-attr]
    odd = tiny_llama(num_layers=1, ffn_width=40)
    with pytest.raises(UsageError, match="rows of 40 values"):
        Student(odd, random_leaves(odd).__getitem__, four_bits=True)
    with pytest.raises(UsageError, match="DoRA"):
        Student(SMALL, random_leaves(SMALL).__getitem__, lora=Lora(2, dora=True), four_bits=True)
