"""Whole students by the native kernels: losses and slopes as near to those in float64 as the same students' by torch's operations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch
from torch import Tensor

from conformance.architectures import ARCHITECTURES
from conformance.llama4 import LLAMA4
from herd import _core
from herd.models.architecture import Config
from herd.training.settings.lora import Lora
from herd.training.student import native_rows
from herd.training.student.batches import batch_of
from herd.training.student.model import Student
from tiny import random_leaves
from training.learning import documents_of, loss_of, randomise

pytestmark = pytest.mark.skipif(_core.available_isas()[-1] == "portable", reason="without vector instructions torch's operations are used")

CONFIGS: dict[str, Config] = {
    **{name: ARCHITECTURES[name] for name in ("llama-3.2 (tied)", "every bias", "groups of three")},
    **{name: LLAMA4[name] for name in ("llama-4 scout", "llama-4 with two experts a token")},
}
STUDENTS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "updates": {"lora": Lora(rank=4)},
    "updates, layers kept": {"lora": Lora(rank=4), "keep_bytes": 1 << 40},
}
DOCUMENTS = documents_of((5, 41, 2, 18, 130))


def slopes_of(cfg: Config, dtype: torch.dtype, options: dict[str, Any]) -> list[Tensor]:
    student = Student(cfg, random_leaves(cfg).__getitem__, dtype=dtype, **options)
    if student.lora is not None:
        randomise(student)
    loss = loss_of(student, batch_of(DOCUMENTS))
    loss.backward()
    slopes = [each.grad if each.grad is not None else torch.zeros_like(each) for each in student.parameters.values()]
    return [each.detach().double() for each in (loss, *slopes)]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Of all slopes together, beside their size: one weight may be right by luck."""
    squares = sum(
        ((mine - truth).square().sum() / truth.square().sum().clamp(min=1e-30)).item() for mine, truth in zip(found, exact, strict=True)
    )
    return float(squares / len(exact)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_slopes_are_as_near_to_the_truth_as_by_torchs_operations(
    name: str, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, options = CONFIGS[name], STUDENTS[kind]
    exact = slopes_of(cfg, torch.float64, options)
    ours = slopes_of(cfg, dtype, options)
    monkeypatch.setattr(native_rows, "fastest_isa", lambda: "portable")
    theirs = slopes_of(cfg, dtype, options)
    assert error(ours, exact) <= 2 * error(theirs, exact)


def test_every_kernel_is_called_by_a_student_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests above would compare torch with itself."""
    called: Counter[str] = Counter()

    class Counted:
        def __init__(self, of: object, name: str) -> None:
            self._of, self._name = of, name

        def __getattr__(self, name: str) -> Any:
            called[f"{self._name}.{name}"] += 1
            return getattr(self._of, name)

    kernels, attention = native_rows._kernels, _core.DocumentAttention
    monkeypatch.setattr(native_rows, "_kernels", lambda: Counted(kernels(), "rows"))
    monkeypatch.setattr(_core, "DocumentAttention", lambda *of: Counted(attention(*of), "attention"))
    slopes_of(CONFIGS["llama-3.2 (tied)"], torch.bfloat16, {})
    rows = ("rms_norm", "rms_norm_backward", "rotate", "silu_gate", "silu_gate_backward", "softmax")
    expected = {f"rows.{name}" for name in rows} | {"attention.forward", "attention.backward", "attention.workspace_bytes"}
    assert set(called) == expected
