"""In what type a machine multiplies fastest: what "auto" means for what a student computes in.

bfloat16 pays where the processor has instructions for it: GPUs, and CPUs with AMX or AVX512-BF16. On others torch's bfloat16
products are 10 to 300 times slower than its float32 ones (two Zen 3 cores, torch 2.13: 0.2 to 10 GFLOPS against 60 to 100), so there it
is float32. The choice looks at what the processor says of itself, never at a clock: a run that goes on chooses the same again.
"""

from __future__ import annotations

import torch

_CPU_FLAGS = ("amx_bf16", "avx512_bf16")
_CPU_QUESTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for its products, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    # torch grew a table of all capabilities in 2.10; before it there is a question for each
    table = getattr(torch.cpu, "get_capabilities", None)
    if table is not None:
        found = table()
        return any(bool(found.get(flag)) for flag in _CPU_FLAGS)
    questions = (getattr(torch.cpu, question, None) for question in _CPU_QUESTIONS)
    return any(bool(question()) for question in questions if question is not None)
