"""What "auto" computes in follows what the processor says of itself."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install herd-llama[torch])")

import torch

from herd.training.student.computing import fastest_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16"])
def test_a_cpu_with_bfloat16_products_computes_in_it(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, flag: True}, raising=False)
    assert fastest_dtype(CPU) is torch.bfloat16


def test_a_cpu_without_them_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False}, raising=False)
    assert fastest_dtype(CPU) is torch.float32


@pytest.mark.parametrize("answer", [True, False])
def test_an_older_torch_is_asked_flag_by_flag(answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for question in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, question, lambda: answer, raising=False)
    assert fastest_dtype(CPU) is (torch.bfloat16 if answer else torch.float32)


def test_another_device_computes_in_float32() -> None:
    assert fastest_dtype(torch.device("meta")) is torch.float32
