"""Rows' log-probabilities in chunks against the plain way, which holds all logits: values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch
from torch import Tensor

from herd.training.student.cross_entropy import Cap, token_logprobs, weighted_nll

ROWS, WIDTH, VOCABULARY = 37, 24, 101
CAP = Cap(1.5, 4.0)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, head, targets and weights; the head stands for an embedding as well."""
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn((ROWS, WIDTH), dtype=torch.float64, generator=random).to(dtype).requires_grad_()
    head = torch.randn((VOCABULARY, WIDTH), dtype=torch.float64, generator=random).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (ROWS,), generator=random)
    return hidden, head, targets, torch.rand(ROWS, dtype=torch.float64, generator=random)


def plain_logits(hidden: Tensor, head: Tensor, cap: Cap | None) -> Tensor:
    logits = hidden @ head.T
    return logits if cap is None else cap.cap * torch.tanh(logits * cap.factor / cap.cap)


def plain_logprobs(hidden: Tensor, head: Tensor, targets: Tensor, cap: Cap | None) -> Tensor:
    return torch.log_softmax(plain_logits(hidden, head, cap), dim=-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("learned", ["hidden", "head", "both"])
@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("chunk_rows", [5, 37, None])
def test_log_probabilities_and_their_gradients_are_the_plain_ones(learned: str, cap: Cap | None, chunk_rows: int | None) -> None:
    hidden, head, targets, weights = inputs()
    hidden.requires_grad_(learned != "head")
    head.requires_grad_(learned != "hidden")
    used = [each for each in (hidden, head) if each.requires_grad]
    ours = token_logprobs(hidden, head, targets, cap=cap, chunk_rows=chunk_rows)
    theirs = plain_logprobs(hidden, head, targets, cap)
    assert torch.allclose(ours, theirs, atol=1e-12)
    slopes = [torch.autograd.grad((weights * rows.exp()).sum(), used) for rows in (ours, theirs)]
    for mine, plain in zip(*slopes, strict=True):
        assert torch.allclose(mine, plain, atol=1e-12)


@pytest.mark.parametrize("learned", ["hidden", "head", "both"])
@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_weighted_sum_and_its_gradients_are_the_plain_ones(learned: str, cap: Cap | None, z_loss: float) -> None:
    hidden, head, targets, weights = inputs()
    hidden.requires_grad_(learned != "head")
    head.requires_grad_(learned != "hidden")
    used = [each for each in (hidden, head) if each.requires_grad]
    ours, extras = weighted_nll(hidden, head, targets, weights, z_loss, cap=cap, chunk_rows=8)
    lse = plain_logits(hidden, head, cap).logsumexp(dim=-1)
    logprobs = plain_logprobs(hidden, head, targets, cap)
    theirs = -(weights * logprobs).sum() + z_loss * (weights * lse.square()).sum()
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.allclose(extras.logprobs_R, logprobs, atol=1e-12) and torch.allclose(extras.lse_R, lse, atol=1e-12)
    assert not extras.logprobs_R.requires_grad and not extras.lse_R.requires_grad
    slopes = [torch.autograd.grad(3 * total, used) for total in (ours, theirs)]
    for mine, plain in zip(*slopes, strict=True):
        assert torch.allclose(mine, plain, atol=1e-12)


def test_a_head_that_is_the_embedding_too_gets_both_gradients() -> None:
    _, head, targets, weights = inputs()
    tokens = (targets + 1) % VOCABULARY
    ours, _ = weighted_nll(torch.nn.functional.embedding(tokens, head), head, targets, weights)
    theirs = -(weights * plain_logprobs(head[tokens], head, targets, None)).sum()
    assert torch.allclose(*(torch.autograd.grad(total, head)[0] for total in (ours, theirs)), atol=1e-12)


@pytest.mark.parametrize("function", [token_logprobs, lambda *rows, **more: weighted_nll(*rows, torch.ones(ROWS), **more)[0]])
def test_in_16_bits_gradients_are_as_near_to_the_truth_as_plain_ones(function: Callable[..., Tensor]) -> None:
    hidden, head, targets, _ = inputs(torch.bfloat16)

    def slopes(values: Tensor) -> list[Tensor]:
        return [each.double() for each in torch.autograd.grad(values.sum(), [hidden, head])]

    ours = slopes(function(hidden, head, targets, chunk_rows=8))
    sign = 1 if function is token_logprobs else -1
    plain = slopes(sign * torch.log_softmax((hidden @ head.T).float(), dim=-1).gather(1, targets[:, None]))
    exact = slopes(sign * torch.log_softmax(hidden.double() @ head.double().T, dim=-1).gather(1, targets[:, None]))
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max()


def test_without_gradients_nothing_is_kept_for_them() -> None:
    hidden, head, targets, weights = inputs()
    with torch.no_grad():
        assert not token_logprobs(hidden, head, targets).requires_grad
        assert not weighted_nll(hidden, head, targets, weights)[0].requires_grad


def test_no_rows_have_no_log_probabilities_and_cost_nothing() -> None:
    hidden, head, targets, weights = (each[:0] if len(each) == ROWS else each for each in inputs())
    assert token_logprobs(hidden, head, targets).shape == (0,)
    total, _ = weighted_nll(hidden, head, targets, weights)
    assert total.detach() == 0.0


def test_logits_never_lie_there_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most that is held at a time is a chunk: counted by the sizes that the softmax is asked for."""
    hidden, head, targets, weights = inputs()
    seen: list[int] = []
    softmax = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, **more: (seen.append(len(x)), softmax(x, **more))[1])
    token_logprobs(hidden, head, targets, chunk_rows=8).sum().backward()
    weighted_nll(hidden, head, targets, weights, chunk_rows=8)[0].backward()
    assert max(seen) == 8 and len(seen) == 5 + 5 + 5, "forwards, once again on the way back of a learned head, and forwards"
