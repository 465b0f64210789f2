"""Attention over packed documents against a plain softmax over one document at a time, in float64: values and gradients."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch
from torch import Tensor

from herd.models.ops import Chunks, Sliding, Window
from herd.training.student import attention
from herd.training.student.attention import Packed, groups
from herd.training.student.flexible import block_mask, flexible

WINDOWS = [None, Chunks(3), Chunks(64), Sliding(1), Sliding(4), Sliding(100)]
LENGTHS = [(1,), (5, 1, 12), (7, 3, 7, 7), (6, 6)]


def qkv_of(lengths: tuple[int, ...], heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    random = torch.Generator().manual_seed(sum(lengths))
    shapes = [(sum(lengths), count, 4) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=torch.float64, generator=random).to(dtype).requires_grad_() for shape in shapes]


def plain(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float, window: Window | None) -> Tensor:
    """Query by query, head by head."""
    found, start = [], 0
    for length in lengths:
        for p in range(length):
            match window:
                case Chunks(tokens):
                    first = p // tokens * tokens
                case Sliding(tokens):
                    first = max(0, p - tokens + 1)
                case None:
                    first = 0
            seen = slice(start + first, start + p + 1)
            for head in range(q.shape[1]):
                shared = head // (q.shape[1] // k.shape[1])
                weights = torch.softmax(scale * (k[seen, shared] @ q[start + p, head]), dim=0)
                found.append(weights @ v[seen, shared])
        start += length
    return torch.stack(found).reshape(q.shape)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", [(4, 2), (2, 2)])
def test_values_and_gradients_are_those_of_each_document_alone(
    lengths: tuple[int, ...], window: Window | None, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK_ROWS", 4)
    inputs = qkv_of(lengths, *heads)
    ours = Packed(lengths).attend(*inputs, 0.7, window)
    theirs = plain(*inputs, lengths, 0.7, window)
    assert torch.allclose(ours, theirs, atol=1e-12)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slopes = [torch.autograd.grad((weights * y).sum(), inputs) for y in (ours, theirs)]
    for mine, expected in zip(*slopes, strict=True):
        assert torch.allclose(mine, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_bits_are_as_near_to_the_truth_as_the_plain_way(dtype: torch.dtype) -> None:
    lengths = (150, 40, 150)
    inputs = qkv_of(lengths, 4, 2, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]

    def found(values: list[Tensor], of: type[Packed] | type[attention.Documents]) -> list[Tensor]:
        y = of(lengths).attend(*values, 0.5, None)
        return [each.detach().double() for each in (y, *torch.autograd.grad(y.double().square().sum(), values))]

    truth = found(exact, attention.Documents)
    for mine, theirs, expected in zip(found(inputs, Packed), found(inputs, attention.Documents), truth, strict=True):
        assert (mine - expected).abs().max() <= 2 * (theirs - expected).abs().max()


@pytest.mark.parametrize("window", WINDOWS)
def test_the_mask_of_flex_attention_says_the_same(window: Window | None) -> None:
    lengths = (5, 1, 12)
    q, k, v = (x.detach().float() for x in qkv_of(lengths, 4, 2))
    mask = block_mask(lengths, window, torch.device("cpu"))
    theirs = plain(q, k, v, lengths, 0.7, window)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        ours = flexible(q, k, v, 0.7, mask)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_student_of_the_softmax_may_still_read_it() -> None:
    q, k, v = (x.detach() for x in qkv_of((3, 2), 4, 2))
    seen: list[Tensor] = []

    def opened(weights: Tensor) -> Tensor:
        seen.append(weights)
        return weights

    y = Packed((3, 2)).attend(q, k, v, 0.5, None, opened)
    assert [tuple(each.shape) for each in seen] == [(4, 3, 3), (4, 2, 2)]
    assert torch.allclose(y, Packed((3, 2)).attend(q, k, v, 0.5, None), atol=1e-12)


def test_documents_of_one_length_are_taken_together_wherever_they_lie() -> None:
    found = {group.length: group for group in groups((7, 3, 7, 7))}
    assert found[7].starts == (0, 10, 17) and found[3].starts == (7,)
    rows = groups((4, 4))[0].rows()
    assert rows == slice(0, 8)
