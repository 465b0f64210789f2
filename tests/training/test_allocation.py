"""Tensors of a run lie in pages of their own, of which no more is resident than was needed at once."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch

from herd import _core
from herd.training.student.allocation import tensor_memory

MEGA = 1 << 20


@pytest.fixture(autouse=True)
def is_open() -> Iterator[None]:
    with tensor_memory() as is_there:
        if not is_there:
            assert platform.libc_ver()[0] != "glibc" or sys.maxsize < 2**32, "torch asks for memory in another way than it did"
            pytest.skip("torch's memory is not glibc's here")
        yield


def used() -> int:
    return _core.tensor_memory_bytes()[0]


def test_large_tensors_lie_there_and_small_ones_do_not() -> None:
    before = used()
    large, small = torch.ones(MEGA), torch.ones(16)
    assert used() - before == 4 * MEGA
    del large, small
    assert used() == before


def test_values_are_those_that_they_are_anywhere() -> None:
    x = torch.arange(MEGA, dtype=torch.float32).reshape(1024, 1024)
    learned = (x / MEGA).clone().requires_grad_()
    (learned @ learned.T).diagonal().sum().backward()  # type: ignore[no-untyped-call]
    assert learned.grad is not None and torch.equal(learned.grad, 2 * learned.detach())


def test_a_tensor_that_was_there_before_and_one_that_stays_after_are_freed_where_they_lie() -> None:
    _core.close_tensor_memory()
    older = torch.ones(MEGA)
    before = used()
    with tensor_memory():
        kept = torch.full((MEGA,), 2.0)
        del older
    assert used() - before == 4 * MEGA and float(kept.sum()) == 2 * MEGA
    outside = torch.ones(MEGA)
    assert used() - before == 4 * MEGA, "what is made outside lies in the heap"
    del kept, outside
    assert used() == before
    _core.open_tensor_memory()


def test_the_same_again_and_again_takes_no_more_though_small_objects_stay_between() -> None:
    """The heap grew by each of these."""
    kept: list[torch.Tensor] = []
    most: list[int] = []
    for _ in range(4):
        for _ in range(25):
            x = torch.ones(300_000)
            kept.append((x * 2)[:1].clone())
        most.append(_core.tensor_memory_bytes()[2])
    assert most[-1] == most[0]


def test_what_is_free_goes_back_at_the_end() -> None:
    _core.close_tensor_memory()
    with tensor_memory():
        x = torch.ones(8 * MEGA)
        del x
        assert _core.tensor_memory_bytes()[2] >= 32 * MEGA
    in_use, _, resident, _ = _core.tensor_memory_bytes()
    assert in_use == resident
    _core.open_tensor_memory()
