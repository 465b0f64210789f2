"""A short run of `scripts/fuzz`, with a seed of its own."""

from __future__ import annotations

import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of the workers need Linux")
@pytest.mark.parametrize("name", ["gguf", "safetensors", "pth"])
def test_mutated_files_are_refused_with_a_file_problem_or_read_as_the_official_reader_does(name: str) -> None:
    from fuzzing import fuzz

    if name == "pth":
        pytest.importorskip("torch", reason="the official reader of .pth is PyTorch's")
    outcome = fuzz(name, count=1500, seed=20, workers=1)
    assert outcome.failures == []
    assert outcome.inputs == 1500 and outcome.compared == outcome.accepted > 0
    assert outcome.memory_growth_mib < 64
