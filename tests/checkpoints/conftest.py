"""Small files that the tests of this folder change and break."""

from __future__ import annotations

import pytest

from herd.models.llama import LlamaConfig
from tiny import tiny_llama

SMALL = {"width": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_width": 16, "ffn_width": 96, "vocab_size": 40}


@pytest.fixture(scope="session")
def small() -> LlamaConfig:
    """A llama whose files are a few hundred kilobytes. Its eps is one that float32 holds exactly, as GGUF stores it."""
    return tiny_llama(**SMALL, norm_eps=2.0**-17)
